-- The shop: eight tables that tests write to, and three small ones with rows that every test starts with.
CREATE TABLE "user" (
    id serial PRIMARY KEY,
    username varchar(40) NOT NULL UNIQUE,
    email varchar(120) NOT NULL UNIQUE,
    active boolean NOT NULL DEFAULT true
);
CREATE TABLE role (id serial PRIMARY KEY, name varchar(40) NOT NULL UNIQUE);
CREATE TABLE user_role (
    id serial PRIMARY KEY,
    user_id int NOT NULL REFERENCES "user" ON DELETE CASCADE,
    role_id int NOT NULL REFERENCES role,
    UNIQUE (user_id, role_id)
);
CREATE TABLE category (id serial PRIMARY KEY, parent_id int REFERENCES category, name varchar(60) NOT NULL, UNIQUE (parent_id, name));
CREATE TABLE product (
    id serial PRIMARY KEY,
    sku varchar(20) NOT NULL UNIQUE,
    name varchar(120) NOT NULL,
    price numeric(10, 2) NOT NULL CHECK (price >= 0),
    stock int NOT NULL DEFAULT 0 CHECK (stock >= 0),
    category_id int NOT NULL REFERENCES category
);
CREATE TABLE orders (
    id serial PRIMARY KEY,
    user_id int NOT NULL REFERENCES "user",
    status varchar(12) NOT NULL DEFAULT 'new',
    created_at timestamp NOT NULL DEFAULT now()
);
CREATE TABLE order_item (
    id serial PRIMARY KEY,
    order_id int NOT NULL REFERENCES orders ON DELETE CASCADE,
    product_id int NOT NULL REFERENCES product,
    quantity int NOT NULL CHECK (quantity > 0),
    unit_price numeric(10, 2) NOT NULL,
    UNIQUE (order_id, product_id)
);
CREATE TABLE payment (
    id serial PRIMARY KEY,
    order_id int NOT NULL UNIQUE REFERENCES orders,
    amount numeric(10, 2) NOT NULL CHECK (amount >= 0),
    reference varchar(40) NOT NULL UNIQUE
);
CREATE INDEX ON user_role (role_id);
CREATE INDEX ON category (parent_id);
CREATE INDEX ON product (category_id);
CREATE INDEX ON orders (user_id);
CREATE INDEX ON orders (status);
CREATE INDEX ON order_item (product_id);

CREATE TABLE country (code varchar(2) PRIMARY KEY, name varchar(40) NOT NULL);
CREATE TABLE currency (code varchar(3) PRIMARY KEY, name varchar(40) NOT NULL);
CREATE TABLE unit (code varchar(3) PRIMARY KEY, name varchar(40) NOT NULL);
INSERT INTO country VALUES ('de', 'Germany'), ('fr', 'France'), ('it', 'Italy');
INSERT INTO currency VALUES ('EUR', 'Euro'), ('GBP', 'Pound'), ('SEK', 'Krona');
INSERT INTO unit VALUES ('g', 'Gram'), ('m', 'Metre'), ('s', 'Second');
