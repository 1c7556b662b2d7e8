"""The catalogue: a tree of categories, products, their stock."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from peewee import IntegrityError

from .models import Category, Product, db
from .payload import Problem, body, money, rows, text, whole

catalogue = Blueprint("catalogue", __name__)


def category_at(path: str) -> Category:
    """Return the category at a path such as "Home/Light"; what is missing of it is created."""
    node: Category | None = None
    for name in path.split("/"):
        if not name.strip():
            raise Problem(400, "category must be a path such as 'Home/Light'")
        node, _ = Category.get_or_create(parent=node, name=name.strip())
    assert node is not None  # split() yields at least one name
    return node


def create_product(data: dict[str, Any]) -> Product:
    """Create a product, and its category if need be."""
    product = Product.create(
        sku=text(data, "sku").upper(),
        name=text(data, "name"),
        price=money(data, "price"),
        stock=whole(data, "stock", 10),
        category=category_at(text(data, "category")),
    )
    return product  # type: ignore[no-any-return]


def find(sku: str) -> Product:
    """Return a product. Raises Problem if there is none."""
    product = Product.get_or_none(Product.sku == sku.upper())
    if product is None:
        raise Problem(404, f"no product {sku}")
    return product  # type: ignore[no-any-return]


def find_category(number: int) -> Category:
    """Return a category. Raises Problem if there is none."""
    category = Category.get_or_none(Category.id == number)
    if category is None:
        raise Problem(404, f"no category {number}")
    return category  # type: ignore[no-any-return]


def shown(product: Product) -> dict[str, Any]:
    """Return a product as JSON shows it."""
    return {
        "sku": product.sku,
        "name": product.name,
        "price": str(product.price),
        "stock": product.stock,
        "category": product.category_id,
    }


def below(category: Category) -> list[int]:
    """Return the ids of a category and of all below it."""
    top = (
        Category.select(Category.id)
        .where(Category.id == category.id)
        .cte("tree", recursive=True, columns=("id",))
    )
    child = Category.alias("child")
    tree = top.union_all(child.select(child.id).join(top, on=(child.parent == top.c.id)))
    return [row.id for row in tree.select_from(tree.c.id).objects()]


@catalogue.get("/categories")
def list_categories() -> ResponseReturnValue:
    """Show the whole tree, names nested in names."""
    nodes: dict[int, dict[str, Any]] = {}
    children = list(Category.select().order_by(Category.name))
    for category in children:
        nodes[category.id] = {}
    tree: dict[str, Any] = {}
    for category in children:
        home = tree if category.parent_id is None else nodes[category.parent_id]
        home[category.name] = nodes[category.id]
    return {"tree": tree}


@catalogue.get("/categories/<int:number>/products")
def list_below(number: int) -> ResponseReturnValue:
    """List the products of a category and of all below it."""
    found = (
        Product.select()
        .where(Product.category.in_(below(find_category(number))))
        .order_by(Product.sku)
    )
    return {"products": [product.sku for product in found]}


@catalogue.patch("/categories/<int:number>")
def change_category(number: int) -> ResponseReturnValue:
    """Rename a category, or hang it below another one (null: to the top)."""
    data = body()
    with db.atomic():
        category = find_category(number)
        if "name" in data:
            category.name = text(data, "name")
        if "parent" in data:
            parent = None if data["parent"] is None else find_category(whole(data, "parent"))
            if parent is not None and parent.id in below(category):
                raise Problem(422, "a category cannot hang below itself")
            category.parent = parent
        category.save()
    return {"id": category.id, "name": category.name, "parent": category.parent_id}


@catalogue.delete("/categories/<int:number>")
def delete_category(number: int) -> ResponseReturnValue:
    """Delete a category that has neither products nor children."""
    find_category(number).delete_instance()
    return "", 204


@catalogue.post("/products")
def post_product() -> ResponseReturnValue:
    """Create a product."""
    with db.atomic():
        product = create_product(body())
    return shown(product), 201


@catalogue.post("/products/import")
def import_products() -> ResponseReturnValue:
    """Create many products; one that is refused does not keep the others out."""
    created, refused = [], []
    with db.atomic():
        for row in rows(body(), "products"):
            try:
                with db.atomic():
                    created.append(create_product(row).sku)
            except (IntegrityError, Problem):
                refused.append(row.get("sku"))
    return {"created": created, "refused": refused}, 201


@catalogue.get("/products")
def list_products() -> ResponseReturnValue:
    """List products, on demand those whose name contains `q` or that cost at most `max_price`."""
    query = Product.select().order_by(Product.sku)
    if "q" in request.args:
        query = query.where(Product.name.contains(request.args["q"]))
    if "max_price" in request.args:
        query = query.where(Product.price <= money({**request.args}, "max_price"))
    return {"products": [product.sku for product in query]}


@catalogue.get("/products/<sku>")
def get_product(sku: str) -> ResponseReturnValue:
    """Show one product."""
    return shown(find(sku))


@catalogue.patch("/products/<sku>")
def change_product(sku: str) -> ResponseReturnValue:
    """Change a product's name, price or category."""
    data = body()
    with db.atomic():
        product = find(sku)
        if "name" in data:
            product.name = text(data, "name")
        if "price" in data:
            product.price = money(data, "price")
        if "category" in data:
            product.category = category_at(text(data, "category"))
        product.save()
    return shown(product)


@catalogue.post("/products/<sku>/stock")
def change_stock(sku: str) -> ResponseReturnValue:
    """Add to the stock, or take from it; that it cannot be negative is the table's business."""
    change = whole(body(), "change")
    product = find(sku)
    Product.update(stock=Product.stock + change).where(Product.id == product.id).execute()
    return shown(find(sku))


@catalogue.delete("/products/<sku>")
def delete_product(sku: str) -> ResponseReturnValue:
    """Delete a product that nobody has ordered."""
    find(sku).delete_instance()
    return "", 204
