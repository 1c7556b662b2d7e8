"""Settings of the Django project."""

import place

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": place.NAME,  # nothing that exists: Django makes its test database over a connection to another one
        "USER": place.USER,
        "PASSWORD": place.PASSWORD,
        "HOST": place.HOST,
        "PORT": place.PORT,
        "TEST": {"NAME": place.NAME},
    }
}
INSTALLED_APPS = ["app"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
SECRET_KEY = "not one"
USE_TZ = False
