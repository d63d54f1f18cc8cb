-- +goose Up

-- What was answered to requests with an Idempotency-Key: written by the
-- statement that makes the change, replayed for a day, then removed.
CREATE TABLE idempotency_keys (
    key         text        PRIMARY KEY,
    fingerprint bytea       NOT NULL, -- of the request
    status      int         NOT NULL,
    header      json        NOT NULL,
    body        bytea       NOT NULL,
    created_at  timestamptz NOT NULL
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
