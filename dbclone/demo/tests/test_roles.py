"""Roles that users apply for: each of these tests touches the tables `user` and `role`."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Role
from shop.testing import counts, post_user, rows


@pytest.mark.parametrize("role", ["customer", "clerk", "manager"])
def test_application_has_the_role_exist(client: FlaskClient, role: str) -> None:
    assert post_user(client, "ann", role=role)["applied_for"] == role
    assert client.get("/roles").get_json() == {"roles": [role]}
    assert counts() == rows(user=1, role=1)


def test_applicants_share_a_role(client: FlaskClient) -> None:
    post_user(client, "ann", role="clerk")
    post_user(client, "bob", role="clerk")
    assert client.get("/roles").get_json() == {"roles": ["clerk"]}
    assert counts() == rows(user=2, role=1)


def test_application_finds_a_role_that_was_created(client: FlaskClient) -> None:
    created = client.post("/roles", json={"name": "Clerk"})
    assert (created.status_code, created.get_json()["name"]) == (201, "clerk")
    post_user(client, "ann", role="clerk")
    assert Role.get(Role.name == "clerk").id == created.get_json()["id"]
    assert counts() == rows(user=1, role=1)


def test_role_name_is_unique(client: FlaskClient, ann: dict[str, Any]) -> None:
    response = client.post("/roles", json={"name": "CUSTOMER"})
    assert response.status_code == 409
    assert "role_name" in response.get_json()["error"]
    assert counts() == rows(user=1, role=1)


def test_list_roles_by_name(client: FlaskClient, ann: dict[str, Any]) -> None:
    for name in ("manager", "clerk"):
        client.post("/roles", json={"name": name})
    assert client.get("/roles").get_json() == {"roles": ["clerk", "customer", "manager"]}
    assert counts() == rows(user=1, role=3)


def test_delete_role_that_nobody_has(client: FlaskClient, ann: dict[str, Any]) -> None:
    assert client.delete("/roles/customer").status_code == 204
    assert client.get("/roles").get_json() == {"roles": []}
    assert counts() == rows(user=1)


def test_delete_unknown_role(client: FlaskClient, ann: dict[str, Any]) -> None:
    assert client.delete("/roles/clerk").status_code == 404
    assert counts() == rows(user=1, role=1)


def test_refused_registration_leaves_no_role(client: FlaskClient, ann: dict[str, Any]) -> None:
    # The role is blank, which is noticed after the user has been written: both have to go.
    assert (
        client.post(
            "/users", json={"username": "bob", "email": "bob@example.org", "role": ""}
        ).status_code
        == 400
    )
    assert client.get("/users").get_json() == {"users": ["ann"]}
    assert counts() == rows(user=1, role=1)
