"""The shop's eight tables."""

from __future__ import annotations

from datetime import datetime, timezone

from peewee import (
    BooleanField,
    CharField,
    Check,
    DateTimeField,
    DecimalField,
    ForeignKeyField,
    IntegerField,
    Model,
    PostgresqlDatabase,
)

# None: which database it is gets decided where the application is started,
# or by dbclone for a test.
db = PostgresqlDatabase(None, prefer_psycopg3=True)


def now() -> datetime:
    """Return the time in UTC without a zone, which is how TIMESTAMP columns keep it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class BaseModel(Model):  # type: ignore[misc]
    """What all tables share."""

    class Meta:
        """Settings that subclasses inherit; the new naming makes UserRole the table user_role."""

        database = db
        legacy_table_names = False


class User(BaseModel):
    """Somebody who may sign in. The table is called "user", a reserved word: peewee quotes it."""

    username = CharField(max_length=40, unique=True)
    email = CharField(max_length=120, unique=True)
    active = BooleanField(default=True)


class Role(BaseModel):
    """Something that users can be: customer, clerk, manager."""

    name = CharField(max_length=40, unique=True)


class UserRole(BaseModel):
    """A role that has been granted to a user."""

    user = ForeignKeyField(User, backref="grants", on_delete="CASCADE")
    role = ForeignKeyField(Role, backref="grants")

    class Meta:
        """A role is granted once."""

        indexes = ((("user", "role"), True),)


class Category(BaseModel):
    """A node of the category tree; the top ones have no parent."""

    parent = ForeignKeyField("self", null=True, backref="children")
    name = CharField(max_length=60)

    class Meta:
        """Names are unique among siblings."""

        indexes = ((("parent", "name"), True),)


class Product(BaseModel):
    """Something for sale, and how many of it are left."""

    sku = CharField(max_length=20, unique=True)
    name = CharField(max_length=120)
    price = DecimalField(max_digits=10, decimal_places=2, constraints=[Check("price >= 0")])
    stock = IntegerField(default=0, constraints=[Check("stock >= 0")])
    category = ForeignKeyField(Category, backref="products")


class Order(BaseModel):
    """What a user has ordered; its status is new, paid, shipped or cancelled."""

    user = ForeignKeyField(User, backref="orders")
    status = CharField(max_length=12, default="new", index=True)
    created_at = DateTimeField(default=now)

    class Meta:
        """ORDER is a reserved word, and the plural needs no quotes in anybody's psql session."""

        table_name = "orders"


class OrderItem(BaseModel):
    """A line of an order, at the price of its day."""

    order = ForeignKeyField(Order, backref="items", on_delete="CASCADE")
    product = ForeignKeyField(Product, backref="items")
    quantity = IntegerField(constraints=[Check("quantity > 0")])
    unit_price = DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        """A product appears once in an order."""

        indexes = ((("order", "product"), True),)


class Payment(BaseModel):
    """The one payment of an order."""

    order = ForeignKeyField(Order, backref="payments", unique=True)
    amount = DecimalField(max_digits=10, decimal_places=2, constraints=[Check("amount >= 0")])
    reference = CharField(max_length=40, unique=True)


MODELS = (User, Role, UserRole, Category, Product, Order, OrderItem, Payment)
