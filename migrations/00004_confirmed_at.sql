-- +goose Up

-- When an order was confirmed, by the database's clock: what a spending limit
-- is held against. Without a value for orders that are there already, so that
-- the table isn't rewritten; those count from their last change.
ALTER TABLE orders ADD COLUMN confirmed_at timestamptz;
-- What a customer spent within a window.
CREATE INDEX orders_counted ON orders (customer_id, currency, COALESCE(confirmed_at, updated_at)) INCLUDE (total)
    WHERE status IN ('confirmed', 'fulfilled', 'refunded');
