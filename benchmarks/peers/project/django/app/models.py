"""Models of the schema's tables: a flush empties the tables that have one."""

from django.db import models


def _key(to, **options):
    return models.ForeignKey(to, models.DO_NOTHING, **options)


class User(models.Model):
    username = models.CharField(max_length=40, unique=True)
    email = models.CharField(max_length=120, unique=True)
    active = models.BooleanField(default=True)

    class Meta:
        db_table = "user"


class Role(models.Model):
    name = models.CharField(max_length=40, unique=True)

    class Meta:
        db_table = "role"


class UserRole(models.Model):
    user = _key(User)
    role = _key(Role)

    class Meta:
        db_table = "user_role"


class Category(models.Model):
    parent = _key("self", null=True)
    name = models.CharField(max_length=60)

    class Meta:
        db_table = "category"


class Product(models.Model):
    sku = models.CharField(max_length=20, unique=True)
    name = models.CharField(max_length=120)
    price = models.DecimalField(max_digits=10, decimal_places=2)
    stock = models.IntegerField(default=0)
    category = _key(Category)

    class Meta:
        db_table = "product"


class Order(models.Model):
    user = _key(User)
    status = models.CharField(max_length=12, default="new")
    created_at = models.DateTimeField()

    class Meta:
        db_table = "orders"


class OrderItem(models.Model):
    order = _key(Order)
    product = _key(Product)
    quantity = models.IntegerField()
    unit_price = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        db_table = "order_item"


class Payment(models.Model):
    order = models.OneToOneField(Order, models.DO_NOTHING)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    reference = models.CharField(max_length=40, unique=True)

    class Meta:
        db_table = "payment"


class Coded(models.Model):
    """What the tables with rows from the start have in common."""

    code = models.CharField(max_length=3, primary_key=True)
    name = models.CharField(max_length=40)

    class Meta:
        abstract = True


class Country(Coded):
    class Meta:
        db_table = "country"


class Currency(Coded):
    class Meta:
        db_table = "currency"


class Unit(Coded):
    class Meta:
        db_table = "unit"
