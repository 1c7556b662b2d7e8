"""What happens to orders: placed, paid, cancelled, shipped."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

from peewee import IntegrityError

from .models import Order, OrderItem, Payment, Product, User, db
from .payload import Problem, mapping, money, rows, text, whole
from .views_catalogue import create_product
from .views_users import address, grant


def find(number: int, lock: bool = False) -> Order:
    """Return an order, on demand locked against others until the transaction ends. Raises Problem
    if there is none."""
    query = Order.select().where(Order.id == number)
    order = (query.for_update() if lock else query).first()
    if order is None:
        raise Problem(404, f"no order {number}")
    return order  # type: ignore[no-any-return]


def total(order: Order) -> Decimal:
    """Return what the lines of an order cost."""
    return sum(
        (
            item.quantity * item.unit_price
            for item in OrderItem.select().where(OrderItem.order == order)
        ),
        Decimal("0.00"),
    )


def _customer(data: dict[str, Any]) -> User:
    """Return the user who orders, registered and made a customer if need be."""
    user, _ = User.get_or_create(username=text(data, "username"), defaults={"email": address(data)})
    if not user.active:
        raise Problem(403, f"{user.username} is not active")
    grant(user, "customer")
    return user  # type: ignore[no-any-return]


def _product(line: dict[str, Any]) -> Product:
    """Return the product that a line names; one that is described as well
    is taken into the catalogue."""
    sku = text(line, "sku").upper()
    product = Product.get_or_none(Product.sku == sku)
    if product is None and "name" not in line:
        raise Problem(422, f"no product {sku}")
    return product or create_product(line)


def _add(order: Order, line: dict[str, Any]) -> bool:
    """Add a line to an order. Returns False if there is not enough in stock."""
    product = _product(line)
    quantity = whole(line, "quantity", 1)
    OrderItem.create(order=order, product=product, quantity=quantity, unit_price=product.price)
    enough = (Product.id == product.id) & (Product.stock >= quantity)
    return bool(Product.update(stock=Product.stock - quantity).where(enough).execute())


def place(data: dict[str, Any]) -> Order:
    """Place an order, all of it or nothing. Raises Problem, or lets IntegrityError through.

    A line with "optional" is a gift that may be left out: it has a savepoint of its own.
    """
    short = ""
    with db.atomic() as transaction:
        order = Order.create(user=_customer(mapping(data, "customer")))
        for line in rows(data, "lines"):
            if line.get("optional"):
                with contextlib.suppress(IntegrityError), db.atomic() as savepoint:
                    if not _add(order, line):
                        savepoint.rollback()
            elif not _add(order, line):
                short = text(line, "sku")
                transaction.rollback()
                break
        if not short and "payment" in data:
            pay(order, mapping(data, "payment"))
    if short:
        raise Problem(409, f"not enough {short} in stock")
    return order  # type: ignore[no-any-return]


def pay(order: Order, data: dict[str, Any]) -> Payment:
    """Pay an order in full; without an amount, what it costs is taken."""
    due = total(order)
    amount = money(data, "amount") if "amount" in data else due
    if amount != due:
        raise Problem(422, f"the order costs {due}")
    with db.atomic():
        if order.status == "cancelled":
            raise Problem(422, "the order is cancelled")
        payment = Payment.create(order=order, amount=amount, reference=text(data, "reference"))
        order.status = "paid"
        order.save()
    return payment  # type: ignore[no-any-return]


def refund(order: Order) -> None:
    """Give the money of an order back, if any was paid."""
    Payment.delete().where(Payment.order == order).execute()


def cancel(order: Order) -> None:
    """Cancel an order that has not been shipped: its products go back on the shelf, its money to
    the customer."""
    if order.status not in ("new", "paid"):
        raise Problem(422, f"the order is {order.status}")
    for item in OrderItem.select().where(OrderItem.order == order):
        Product.update(stock=Product.stock + item.quantity).where(
            Product.id == item.product_id
        ).execute()
    refund(order)
    order.status = "cancelled"
    order.save()


def drop_line(order: Order, sku: str) -> None:
    """Take a line out of an order that is not yet paid."""
    if order.status != "new":
        raise Problem(422, f"the order is {order.status}")
    item = (
        OrderItem.select()
        .join(Product)
        .where(OrderItem.order == order, Product.sku == sku.upper())
        .first()
    )
    if item is None:
        raise Problem(404, f"no {sku} in the order")
    Product.update(stock=Product.stock + item.quantity).where(
        Product.id == item.product_id
    ).execute()
    item.delete_instance()


def ship(order: Order) -> None:
    """Ship an order that is paid."""
    if order.status != "paid":
        raise Problem(422, f"the order is {order.status}")
    order.status = "shipped"
    order.save()
