-- +goose Up

-- How often a mail was sent again because an operator asked for it.
ALTER TABLE mail ADD COLUMN resent int NOT NULL DEFAULT 0;

-- How much mail addresses got lately, for OUTFLOW_MAIL_RATE. An address is the
-- SHA-256 of its canonical form. whole_at is when its allowance is whole again;
-- after that, the row means nothing.
CREATE TABLE mail_allowances (
    recipient bytea       PRIMARY KEY,
    whole_at  timestamptz NOT NULL
);
CREATE INDEX mail_allowances_whole ON mail_allowances (whole_at);
