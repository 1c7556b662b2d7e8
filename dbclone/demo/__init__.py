"""A sample project, as dbclone finds them: a small Flask and peewee shop, and the 139 integration
tests of its team."""
