"""Reports: what was sold, to whom, and what is running out."""

from __future__ import annotations

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from peewee import JOIN, fn

from .models import Category, Order, OrderItem, Payment, Product, User

reports = Blueprint("reports", __name__)


@reports.get("/reports/revenue")
def revenue() -> ResponseReturnValue:
    """Return how much was paid, by how many payments."""
    paid, count = Payment.select(
        fn.COALESCE(fn.SUM(Payment.amount), 0), fn.COUNT(Payment.id)
    ).scalar(as_tuple=True)
    return {"revenue": str(round(paid, 2)), "payments": count}


@reports.get("/reports/categories")
def by_category() -> ResponseReturnValue:
    """Return how many pieces were sold in each category; cancelled orders do not count."""
    query = (
        Category.select(Category.name, fn.SUM(OrderItem.quantity).alias("sold"))
        .join(Product)
        .join(OrderItem)
        .join(Order)
        .where(Order.status != "cancelled")
        .group_by(Category.name)
    )
    return {"sold": {row.name: row.sold for row in query.objects()}}


@reports.get("/reports/customers")
def by_customer() -> ResponseReturnValue:
    """Return how many orders each user has placed, also those who have none."""
    query = (
        User.select(User.username, fn.COUNT(Order.id).alias("placed"))
        .join(Order, JOIN.LEFT_OUTER)
        .group_by(User.username)
    )
    return {"orders": {row.username: row.placed for row in query.objects()}}


@reports.get("/reports/status")
def by_status() -> ResponseReturnValue:
    """Return how many orders there are of each status."""
    query = Order.select(Order.status, fn.COUNT(Order.id).alias("number")).group_by(Order.status)
    return {"orders": {row.status: row.number for row in query.objects()}}


@reports.get("/reports/stock")
def low_stock() -> ResponseReturnValue:
    """Return the products of which fewer than `below` are left, and what all stock is worth."""
    limit = request.args.get("below", 5, type=int)
    low = Product.select().where(Product.stock < limit).order_by(Product.sku)
    worth = Product.select(fn.COALESCE(fn.SUM(Product.stock * Product.price), 0)).scalar()
    return {"low": {product.sku: product.stock for product in low}, "worth": str(round(worth, 2))}
