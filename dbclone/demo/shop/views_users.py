"""Users register and apply for a role; a grant is a step of its own."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from .models import Role, User, UserRole, db
from .payload import Problem, body, text

users = Blueprint("users", __name__)


def find(username: str) -> User:
    """Return a user. Raises Problem if there is none of that name."""
    user = User.get_or_none(User.username == username)
    if user is None:
        raise Problem(404, f"no user {username}")
    return user  # type: ignore[no-any-return]


def shown(user: User) -> dict[str, Any]:
    """Return a user as JSON shows it."""
    granted = Role.select(Role.name).join(UserRole).where(UserRole.user == user).order_by(Role.name)
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "active": user.active,
        "roles": [role.name for role in granted],
    }


def grant(user: User, name: str) -> bool:
    """Give a user a role, which is created if need be. Returns whether the user did not have it."""
    role, _ = Role.get_or_create(name=name)
    _, created = UserRole.get_or_create(user=user, role=role)
    return bool(created)


def address(data: dict[str, Any]) -> str:
    """Return an e-mail address in the form in which it is unique."""
    email = text(data, "email").lower()
    if email.count("@") != 1 or email.startswith("@") or email.endswith("@"):
        raise Problem(400, "email must be an address")
    return email


@users.post("/users")
def register() -> ResponseReturnValue:
    """Register a user, and have the role applied for exist; an administrator grants it later."""
    data = body()
    with db.atomic():
        user = User.create(username=text(data, "username"), email=address(data))
        role, _ = Role.get_or_create(name=text({"role": "customer", **data}, "role"))
    return {**shown(user), "applied_for": role.name}, 201


@users.get("/users")
def list_users() -> ResponseReturnValue:
    """List users by name, on demand only those who are active, or not."""
    query = User.select().order_by(User.username)
    if "active" in request.args:
        query = query.where(User.active == (request.args["active"] == "yes"))
    return {"users": [user.username for user in query]}


@users.get("/users/<username>")
def get_user(username: str) -> ResponseReturnValue:
    """Show one user."""
    return shown(find(username))


@users.patch("/users/<username>")
def change_user(username: str) -> ResponseReturnValue:
    """Change a user's address, or whether the user is active."""
    data = body()
    user = find(username)
    if "email" in data:
        user.email = address(data)
    if "active" in data:
        user.active = bool(data["active"])
    user.save()
    return shown(user)


@users.delete("/users/<username>")
def delete_user(username: str) -> ResponseReturnValue:
    """Delete a user and the grants; one who has ordered stays."""
    find(username).delete_instance()
    return "", 204


@users.get("/roles")
def list_roles() -> ResponseReturnValue:
    """List the names of all roles."""
    return {"roles": [role.name for role in Role.select().order_by(Role.name)]}


@users.post("/roles")
def create_role() -> ResponseReturnValue:
    """Create a role."""
    role = Role.create(name=text(body(), "name").lower())
    return {"id": role.id, "name": role.name}, 201


@users.delete("/roles/<name>")
def delete_role(name: str) -> ResponseReturnValue:
    """Delete a role that nobody has."""
    if not Role.delete().where(Role.name == name).execute():
        raise Problem(404, f"no role {name}")
    return "", 204


@users.put("/users/<username>/roles/<name>")
def put_role(username: str, name: str) -> ResponseReturnValue:
    """Grant a role; to grant it again changes nothing."""
    with db.atomic():
        created = grant(find(username), name)
    return shown(find(username)), 201 if created else 200


@users.delete("/users/<username>/roles/<name>")
def revoke_role(username: str, name: str) -> ResponseReturnValue:
    """Take a role away."""
    role = Role.select().where(Role.name == name)
    if (
        not UserRole.delete()
        .where(UserRole.user == find(username), UserRole.role.in_(role))
        .execute()
    ):
        raise Problem(404, f"{username} has no role {name}")
    return "", 204
