"""The application's database handle."""

from peewee import PostgresqlDatabase

db = PostgresqlDatabase(None, prefer_psycopg3=True)
