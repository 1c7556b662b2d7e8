"""Users register and change: each of these tests touches the tables `user` and `role`."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Role, User
from shop.testing import counts, post_user, rows


def test_register_shows_the_user(client: FlaskClient) -> None:
    user = post_user(client, "ann")
    assert user["id"] == User.get(User.username == "ann").id
    assert (user["email"], user["active"], user["roles"]) == ("ann@example.org", True, [])
    assert counts() == rows(user=1, role=1)


def test_register_applies_for_customer_unless_told(client: FlaskClient) -> None:
    assert post_user(client, "ann")["applied_for"] == "customer"
    assert [role.name for role in Role.select()] == ["customer"]
    assert counts() == rows(user=1, role=1)


@pytest.mark.parametrize("username", ["ann", "o'hara", "Zoë %s"])
def test_register_takes_any_name(client: FlaskClient, username: str) -> None:
    assert post_user(client, username, email="someone@example.org")["username"] == username
    assert [user.username for user in User.select()] == [username]
    assert counts() == rows(user=1, role=1)


@pytest.mark.parametrize("email", ["nowhere", "@example.org", "a@b@c"])
def test_register_refuses_what_is_no_address(
    client: FlaskClient, ann: dict[str, Any], email: str
) -> None:
    response = client.post("/users", json={"username": "bob", "email": email, "role": "clerk"})
    assert (response.status_code, response.get_json()) == (
        400,
        {"error": "email must be an address"},
    )
    assert counts() == rows(user=1, role=1)


def test_username_is_unique(client: FlaskClient, ann: dict[str, Any]) -> None:
    response = client.post("/users", json={"username": "ann", "email": "other@example.org"})
    assert response.status_code == 409
    assert "user_username" in response.get_json()["error"]
    assert counts() == rows(user=1, role=1)


def test_email_is_unique_whatever_its_case(client: FlaskClient, ann: dict[str, Any]) -> None:
    response = client.post("/users", json={"username": "bob", "email": "ANN@Example.org"})
    assert response.status_code == 409
    assert "user_email" in response.get_json()["error"]
    assert counts() == rows(user=1, role=1)


def test_register_needs_a_username(client: FlaskClient, ann: dict[str, Any]) -> None:
    assert (
        client.post("/users", json={"username": " ", "email": "bob@example.org"}).status_code == 400
    )
    assert counts() == rows(user=1, role=1)


def test_register_refuses_a_name_that_does_not_fit(
    client: FlaskClient, ann: dict[str, Any]
) -> None:
    response = client.post("/users", json={"username": "x" * 41, "email": "bob@example.org"})
    assert response.status_code == 400
    assert "(40)" in response.get_json()["error"]
    assert counts() == rows(user=1, role=1)


def test_list_users_by_name(client: FlaskClient) -> None:
    for username in ("cyd", "ann", "bob"):
        post_user(client, username)
    assert client.get("/users").get_json() == {"users": ["ann", "bob", "cyd"]}
    assert counts() == rows(user=3, role=1)


@pytest.mark.parametrize(("active", "expected"), [("yes", ["ann", "cyd"]), ("no", ["bob"])])
def test_list_users_by_activity(client: FlaskClient, active: str, expected: list[str]) -> None:
    for username in ("ann", "bob", "cyd"):
        post_user(client, username)
    client.patch("/users/bob", json={"active": False})
    assert client.get("/users", query_string={"active": active}).get_json() == {"users": expected}
    assert counts() == rows(user=3, role=1)


def test_unknown_user_is_not_found(client: FlaskClient, ann: dict[str, Any]) -> None:
    response = client.get("/users/bob")
    assert (response.status_code, response.get_json()) == (404, {"error": "no user bob"})
    assert counts() == rows(user=1, role=1)


def test_change_email(client: FlaskClient, ann: dict[str, Any]) -> None:
    assert (
        client.patch("/users/ann", json={"email": "New@example.org"}).get_json()["email"]
        == "new@example.org"
    )
    assert User.get_by_id(ann["id"]).email == "new@example.org"
    assert counts() == rows(user=1, role=1)


def test_change_email_to_somebody_elses(client: FlaskClient, ann: dict[str, Any]) -> None:
    post_user(client, "bob")
    assert client.patch("/users/bob", json={"email": "ann@example.org"}).status_code == 409
    assert client.get("/users/bob").get_json()["email"] == "bob@example.org"
    assert counts() == rows(user=2, role=1)


def test_deactivate(client: FlaskClient, ann: dict[str, Any]) -> None:
    assert client.patch("/users/ann", json={"active": False}).get_json() == {
        "id": ann["id"],
        "username": "ann",
        "email": "ann@example.org",
        "active": False,
        "roles": [],
    }
    assert counts() == rows(user=1, role=1)


def test_delete_user_leaves_the_role(client: FlaskClient, ann: dict[str, Any]) -> None:
    post_user(client, "bob")
    assert client.delete("/users/ann").status_code == 204
    assert client.get("/users").get_json() == {"users": ["bob"]}
    assert counts() == rows(user=1, role=1)
