package api

import (
	"context"
	"time"

	"outflow/domain"
	"outflow/store"
)

// readyTimeout is how long the database may take to say that it is there.
const readyTimeout = 2 * time.Second

// health is what the health checks say.
type health struct {
	Status string `json:"status"`
}

// handleLive says that the process serves requests, whatever else is down.
func handleLive(x *exchange) error { return x.reply(health{"live"}) }

// handleReady says whether requests can be served: whether the database answers.
func handleReady(ping func(context.Context) error) func(*exchange) error {
	return func(x *exchange) error {
		ctx, cancel := context.WithTimeout(x.r.Context(), readyTimeout)
		defer cancel()
		if err := ping(ctx); err != nil {
			return err
		}
		return x.reply(health{"ready"})
	}
}

// healthRoutes are the operations that say how the service is.
func healthRoutes(s *store.Store) []route {
	return []route{
		{Operation: healthDocs("getLiveness", "/livez", "Is the process alive?",
			"Answers as long as the process serves requests, whatever else is down.", "live"), handle: handleLive},
		{Operation: healthDocs("getReadiness", "/readyz", "Can requests be served?",
			"Answers 200 when the database does, and 503 when it doesn't within two seconds.", "ready", domain.CodeUnavailable), handle: handleReady(s.Ping)},
	}
}
