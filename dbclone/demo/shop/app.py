"""The application: blueprints, a connection per request, and errors as JSON."""

from __future__ import annotations

from flask import Flask
from flask.typing import ResponseReturnValue
from peewee import DataError, IntegrityError
from werkzeug.exceptions import HTTPException

from .models import db
from .payload import Problem
from .views_catalogue import catalogue
from .views_orders import orders
from .views_reports import reports
from .views_users import users


def create_app() -> Flask:
    """Return the application; whoever starts it has pointed `shop.models.db` at a database."""
    app = Flask(__name__)
    for blueprint in (users, catalogue, orders, reports):
        app.register_blueprint(blueprint)

    @app.before_request
    def connect() -> None:
        db.connect(reuse_if_open=True)

    @app.teardown_request
    def disconnect(error: BaseException | None) -> None:
        if not db.is_closed():
            db.close()

    @app.errorhandler(Problem)
    def problem(error: Problem) -> ResponseReturnValue:
        return {"error": error.message}, error.status

    @app.errorhandler(IntegrityError)
    def conflict(error: Exception) -> ResponseReturnValue:
        # The first line names the constraint; the rest quotes values that may
        # be somebody's e-mail address.
        return {"error": str(error).splitlines()[0]}, 409

    @app.errorhandler(DataError)
    def unfit(error: Exception) -> ResponseReturnValue:
        return {"error": str(error).splitlines()[0]}, 400

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> ResponseReturnValue:
        return {"error": error.description}, error.code or 500

    return app
