package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// What PostgreSQL reports (manual, appendix A) and what this package tells by it.
const (
	uniqueViolation     = "23505"
	foreignKeyViolation = "23503"
	checkViolation      = "23514"
	readOnlyTransaction = "25006"
	serializationFailed = "40001"
	deadlockDetected    = "40P01"
	lockNotAvailable    = "55P03" // lock_timeout
	queryCanceled       = "57014" // statement_timeout, when it isn't the caller's doing
	ioError             = "58030"

	classConnection = "08"
	classResources  = "53" // disk full, out of memory, too many connections
	classShutdown   = "57" // 57P01 to 57P05

	liveEmail = "customers_live_email"
)

// wrap says what was being done, and gives the error its code. A nil error
// stays nil; errors of callers' functions and of decisions keep their code.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	if domain.CodeOf(err) != "" {
		return err
	}
	if e := coded(err); e != nil {
		e.Err = fmt.Errorf("%s: %w", doing, err)
		return e
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// coded returns the error that callers may be told about, or nil for one that
// is nobody's fault but ours.
func coded(err error) *domain.Error {
	if errors.Is(err, context.Canceled) {
		return nil // whoever asked has gone
	}
	unavailable := &domain.Error{Code: domain.CodeUnavailable, Message: "the database is not available"}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return unavailable // whatever the server said, we could not get in
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if connectionLost(err) {
			return unavailable
		}
		return nil
	}
	switch {
	case pg.Code == uniqueViolation && pg.ConstraintName == liveEmail:
		return &domain.Error{Code: domain.CodeEmailTaken, Message: "another customer has this email"}
	case pg.Code == serializationFailed, pg.Code == deadlockDetected, pg.Code == lockNotAvailable:
		return &domain.Error{Code: domain.CodeWriteConflict, Message: conflictMessage}
	case pg.Code == readOnlyTransaction, pg.Code == queryCanceled, pg.Code == ioError,
		strings.HasPrefix(pg.Code, classConnection), strings.HasPrefix(pg.Code, classResources) && !failpoint.Mutant("store.disk-is-our-fault"),
		strings.HasPrefix(pg.Code, classShutdown):
		return unavailable
	case pg.Code == checkViolation && pg.TableName == "outbox" && pg.ConstraintName == "":
		return unavailable // nobody made the next partition: a matter of operation
	}
	return nil
}

// connectionLost tells the errors of a connection from those of a programmer,
// which must not be taken for a database that will be back.
func connectionLost(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

const conflictMessage = "others kept changing the same entities; nothing was written"

// conflict is the error of a write that was tried often enough.
func conflict(err error) error {
	if errors.Is(err, errMoved) {
		return &domain.Error{Code: domain.CodeWriteConflict, Message: conflictMessage, Err: err}
	}
	return err
}

// rolledBackByOthers reports whether the database gave a transaction up for
// the sake of another one.
func rolledBackByOthers(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == serializationFailed || pg.Code == deadlockDetected)
}

// found turns "no row" into CodeNotFound.
func found(what string, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return notFound(what)
	}
	return err
}

func notFound(what string) error {
	return &domain.Error{Code: domain.CodeNotFound, Message: "there is no such " + what}
}
