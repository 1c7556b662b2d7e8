"""The same schema as everybody's, with its rows: which tables there are, the models say."""

import place
from django.db import migrations


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [migrations.RunSQL(place.SCHEMA.read_text())]
