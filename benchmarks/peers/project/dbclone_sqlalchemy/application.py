"""The application's engine."""

from sqlalchemy import create_engine

engine = create_engine("postgresql+psycopg://")
