-- +goose Up

-- Lists are sorted by these, and by id among equals. The indexes by creation
-- take the place of those by id.
CREATE INDEX customers_created ON customers (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX customers_updated ON customers (updated_at, id) WHERE deleted_at IS NULL;
CREATE INDEX customers_name ON customers (lower(name) COLLATE "C", id) WHERE deleted_at IS NULL;
-- How often names begin with what: PostgreSQL looks at no statistics of a
-- partial index, and would take every prefix for a rare one.
CREATE STATISTICS customers_names ON (lower(name)) FROM customers;
CREATE INDEX customers_status ON customers (status, created_at, id) WHERE deleted_at IS NULL;
DROP INDEX customers_live;

CREATE INDEX orders_created ON orders (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX orders_updated ON orders (updated_at, id) WHERE deleted_at IS NULL;
CREATE INDEX orders_total ON orders (total, id) WHERE deleted_at IS NULL;
CREATE INDEX orders_status ON orders (status, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX orders_customer_created ON orders (customer_id, created_at, id) WHERE deleted_at IS NULL;
DROP INDEX orders_live;
DROP INDEX orders_of_customer;

-- Keys that all processes on this database share, so that any of them reads
-- what another one has sealed. Two random UUIDs have 244 random bits.
CREATE TABLE secrets (
    name  text  PRIMARY KEY,
    value bytea NOT NULL
);
INSERT INTO secrets (name, value)
VALUES ('cursors', decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
