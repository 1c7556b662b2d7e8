"""Orders and payments over HTTP."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from . import ordering
from .models import Order, OrderItem, Payment, Product, User, db
from .payload import Problem, body, whole

orders = Blueprint("orders", __name__)


def shown(order: Order) -> dict[str, Any]:
    """Return an order as JSON shows it."""
    lines = (
        OrderItem.select(OrderItem, Product)
        .join(Product)
        .where(OrderItem.order == order)
        .order_by(Product.sku)
    )
    payment = Payment.get_or_none(Payment.order == order)
    return {
        "id": order.id,
        "customer": order.user.username,
        "status": order.status,
        "lines": {item.product.sku: item.quantity for item in lines},
        "total": str(ordering.total(order)),
        "payment": payment.reference if payment else None,
    }


@orders.post("/orders")
def post_order() -> ResponseReturnValue:
    """Place an order; a customer, roles, categories and products that are missing are created."""
    return shown(ordering.place(body())), 201


@orders.get("/orders")
def list_orders() -> ResponseReturnValue:
    """List the ids of orders, oldest first, on demand those of a `status` or of a `customer`."""
    query = Order.select().join(User).order_by(Order.created_at, Order.id)
    if "status" in request.args:
        query = query.where(Order.status == request.args["status"])
    if "customer" in request.args:
        query = query.where(User.username == request.args["customer"])
    return {"orders": [order.id for order in query]}


@orders.get("/orders/<int:number>")
def get_order(number: int) -> ResponseReturnValue:
    """Show one order."""
    return shown(ordering.find(number))


@orders.delete("/orders/<int:number>")
def delete_order(number: int) -> ResponseReturnValue:
    """Delete an order and its lines; one that is paid stays, its payment refers to it."""
    ordering.find(number).delete_instance()
    return "", 204


@orders.post("/orders/<int:number>/<any(cancel, ship):step>")
def step_order(number: int, step: str) -> ResponseReturnValue:
    """Cancel or ship an order."""
    with db.atomic():
        order = ordering.find(number, lock=True)
        if step == "cancel":
            ordering.cancel(order)
        else:
            ordering.ship(order)
    return shown(order)


@orders.delete("/orders/<int:number>/lines/<sku>")
def delete_line(number: int, sku: str) -> ResponseReturnValue:
    """Take a line out of an order."""
    with db.atomic():
        order = ordering.find(number, lock=True)
        ordering.drop_line(order, sku)
    return shown(order)


@orders.post("/payments")
def post_payment() -> ResponseReturnValue:
    """Pay an order."""
    data = body()
    with db.atomic():
        order = ordering.find(whole(data, "order"), lock=True)
        payment = ordering.pay(order, data)
    return {"order": order.id, "amount": str(payment.amount), "reference": payment.reference}, 201


@orders.get("/payments/<reference>")
def get_payment(reference: str) -> ResponseReturnValue:
    """Show one payment."""
    payment = Payment.get_or_none(Payment.reference == reference)
    if payment is None:
        raise Problem(404, f"no payment {reference}")
    return {"order": payment.order_id, "amount": str(payment.amount), "reference": reference}


@orders.delete("/payments/<reference>")
def delete_payment(reference: str) -> ResponseReturnValue:
    """Refund a payment; the order is new again, unless it has been shipped."""
    with db.atomic():
        payment = Payment.get_or_none(Payment.reference == reference)
        if payment is None:
            raise Problem(404, f"no payment {reference}")
        order = ordering.find(payment.order_id, lock=True)
        if order.status == "shipped":
            raise Problem(422, "the order is shipped")
        ordering.refund(order)
        order.status = "new"
        order.save()
    return "", 204
