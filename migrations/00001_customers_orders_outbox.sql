-- +goose Up

CREATE TABLE customers (
    id                    uuid        PRIMARY KEY,
    version               bigint      NOT NULL CHECK (version > 0),
    name                  text        NOT NULL,
    email                 text        NOT NULL,
    email_canonical       text        NOT NULL,
    phone                 text        NOT NULL DEFAULT '',
    address               json,
    status                text        NOT NULL CHECK (status IN ('active', 'suspended', 'closed')),
    spending_limit_amount bigint,
    spending_limit_currency text,
    metadata              json,
    created_at            timestamptz NOT NULL,
    updated_at            timestamptz NOT NULL,
    deleted_at            timestamptz,
    CHECK ((spending_limit_amount IS NULL) = (spending_limit_currency IS NULL))
);
-- Names a domain rule (an email belongs to one live customer); package store
-- tells it by this name.
CREATE UNIQUE INDEX customers_live_email ON customers (email_canonical) WHERE deleted_at IS NULL;
-- Lists page over live customers in the order of their ids, oldest first
-- (UUIDv7).
CREATE INDEX customers_live ON customers (id) WHERE deleted_at IS NULL;

CREATE TABLE orders (
    id          uuid        PRIMARY KEY,
    version     bigint      NOT NULL CHECK (version > 0),
    customer_id uuid        NOT NULL REFERENCES customers (id),
    currency    text        NOT NULL,
    items       json        NOT NULL,
    total       bigint      NOT NULL CHECK (total >= 0),
    status      text        NOT NULL CHECK (status IN ('placed', 'confirmed', 'rejected', 'fulfilled', 'refunded', 'cancelled')),
    reason      text        NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    deleted_at  timestamptz
);
CREATE INDEX orders_live ON orders (id) WHERE deleted_at IS NULL;
CREATE INDEX orders_of_customer ON orders (customer_id, id) WHERE deleted_at IS NULL;
-- Answers "has this customer open orders?" without reading the others.
CREATE INDEX orders_open ON orders (customer_id) WHERE deleted_at IS NULL AND status IN ('placed', 'confirmed');

-- The event log. Rows are inserted and never changed; retention drops whole
-- partitions. xid is the transaction that wrote the row: the snapshot-difference
-- reader selects by it, and the streaming reader leaves out rows whose xid is
-- not the transaction that brought them (rows that were moved or restored).
CREATE TABLE outbox (
    position          bigint      GENERATED ALWAYS AS IDENTITY,
    xid               xid8        NOT NULL DEFAULT pg_current_xact_id(),
    event_id          uuid        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      uuid        NOT NULL,
    aggregate_version bigint      NOT NULL,
    type              text        NOT NULL,
    key               text        NOT NULL,
    before            json,
    after             json,
    metadata          json        NOT NULL,
    occurred_at       timestamptz NOT NULL,
    PRIMARY KEY (position)
) PARTITION BY RANGE (position);
CREATE INDEX outbox_xid ON outbox (xid, position);
-- The history of one aggregate, and the guard against two events of one version.
CREATE INDEX outbox_aggregate ON outbox (aggregate_id, aggregate_version);

-- Partitions are made ahead by package outbox; these carry a new database
-- until then. Each holds 2^24 positions.
CREATE TABLE outbox_p0 PARTITION OF outbox FOR VALUES FROM (MINVALUE) TO (16777216);
CREATE TABLE outbox_p1 PARTITION OF outbox FOR VALUES FROM (16777216) TO (33554432);

-- One row per mail: claimed before it is handed to the mail server, marked
-- when the server has taken it (RFC 1047).
CREATE TABLE mail (
    event_id      uuid        PRIMARY KEY,
    state         text        NOT NULL CHECK (state IN ('claimed', 'sent', 'failed')),
    attempts      int         NOT NULL DEFAULT 0,
    claimed_until timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    error         text        NOT NULL DEFAULT ''
);
