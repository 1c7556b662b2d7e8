"""A small shop: users and roles, a catalogue, orders, payments and reports."""
