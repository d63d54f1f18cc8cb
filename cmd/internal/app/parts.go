package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/analytics"
	"outflow/api"
	"outflow/confirmer"
	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/mongodb"
	"outflow/notifier"
	"outflow/outbox"
	"outflow/replicator"
	"outflow/store"
)

// drain is how long a stopping API waits for the requests that it has.
const drain = 15 * time.Second

// pingTimeout is how long the database may take to say that it is there.
const pingTimeout = 2 * time.Second

// ListenAPI opens the API's listener. Its error names the flag that helps.
func ListenAPI(cfg Config) (net.Listener, error) {
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("can't serve the API on %s (%w): name another address with --listen, port 0 for any free one", cfg.Listen, err)
	}
	return ln, nil
}

// APIPart serves the REST API where the configuration says.
func APIPart(cfg Config, log *slog.Logger) (Part, error) {
	ln, err := ListenAPI(cfg)
	if err != nil {
		return Part{}, err
	}
	log.Info("api listens", "url", "http://"+ln.Addr().String())
	return APIOn(ln, cfg, log)
}

// APIOn serves the REST API on a listener.
func APIOn(ln net.Listener, cfg Config, log *slog.Logger) (Part, error) {
	pool, err := store.Open(context.Background(), cfg.PostgresURL, cfg.PostgresMaxConns)
	if err != nil {
		return Part{}, errors.Join(err, ln.Close())
	}
	figures, closing, err := figuresOf(cfg)
	if err != nil {
		pool.Close()
		return Part{}, errors.Join(err, ln.Close())
	}
	var requests atomic.Int64
	entities := store.New(pool, store.Config{})
	handler := api.New(entities, api.Config{Logger: log, RequireIfMatch: cfg.RequireIfMatch, Analytics: figures})
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		handler.ServeHTTP(w, r)
	})
	srv := api.NewServer(ln.Addr().String(), counted)
	srv.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	return Part{
		Name: "api",
		Done: func() string { return count(requests.Load(), "request answered", "requests answered") },
		// Kafka has no say here: requests are served, and their events wait in
		// PostgreSQL.
		Ready: func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
			defer cancel()
			return entities.Ping(ctx) == nil
		},
		Figures: func() []Figure {
			return []Figure{{"api_requests_total", "Requests that were answered.", counter, float64(requests.Load())}}
		},
		Run: func(ctx context.Context) (err error) {
			defer pool.Close()
			defer func() { err = errors.Join(err, closing(ctx)) }()
			// Whoever is still being served when the API stops shares commits too.
			committing, stopCommitting := context.WithCancel(context.WithoutCancel(ctx))
			committed := make(chan error, 1)
			go func() { committed <- entities.Run(committing) }()
			defer func() { stopCommitting(); err = errors.Join(err, <-committed) }()
			failed := make(chan error, 1)
			go func() { failed <- srv.Serve(api.Listener(ln)) }()
			select {
			case err := <-failed:
				return err
			case <-ctx.Done():
			}
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
			defer cancel()
			err = srv.Shutdown(stop)
			if errors.Is(err, context.DeadlineExceeded) {
				log.Warn("requests were cut off", "after", drain)
				err = srv.Close()
			}
			if serr := <-failed; !errors.Is(serr, http.ErrServerClosed) {
				err = errors.Join(err, serr)
			}
			return err
		},
	}, nil
}

// figuresOf opens the figures that the API answers from: none where no MongoDB
// is configured.
func figuresOf(cfg Config) (r *analytics.Reader, closing func(context.Context) error, err error) {
	if cfg.MongoURI == "" {
		return nil, func(context.Context) error { return nil }, nil
	}
	target, err := mongodb.Parse(cfg.MongoURI, "outflow api")
	if err != nil {
		return nil, nil, &ConfigError{Problems: []string{"OUTFLOW_MONGO_URI: " + err.Error()}}
	}
	db, closing, err := target.Open()
	if err != nil {
		return nil, nil, err
	}
	return analytics.NewReader(db, time.Now), closing, nil
}

// RelayPart publishes the outbox to Kafka.
func RelayPart(cfg Config, log *slog.Logger) (Part, error) {
	r := outbox.NewRelay(outbox.Config{
		PostgresURL: cfg.PostgresURL, Brokers: cfg.KafkaBrokers, Namespace: cfg.Namespace(),
		Group: cfg.RelayGroup, Partitions: cfg.KafkaPartitions, Logger: log.With("part", "relay"),
		Source: outbox.Source(cfg.RelaySource), Resync: cfg.RelayResync,
	})
	return Part{
		Name: "relay", Run: r.Run,
		Done: func() string { return count(r.Stats().Published, "event published", "events published") },
		// A relay that stands by does its work too.
		Ready:   func() bool { st := r.Stats(); return st.Active || st.State == outbox.StateStandby },
		Figures: func() []Figure { return relayFigures(r.Stats()) },
		Status:  r,
	}, nil
}

// ReplicatePart keeps the MongoDB replica.
func ReplicatePart(cfg Config, log *slog.Logger) (Part, error) {
	r, err := replicator.New(replicator.Config{
		Brokers: cfg.KafkaBrokers, Namespace: cfg.Namespace(), MongoURI: cfg.MongoURI, Logger: log.With("part", "replicate"),
	})
	if err != nil {
		return Part{}, &ConfigError{Problems: []string{"OUTFLOW_MONGO_URI: " + err.Error()}}
	}
	return workerPart("replicate", r.Run, r.Stats, "event replicated", "events replicated"), nil
}

// AnalyzePart keeps the figures about orders and customers.
func AnalyzePart(cfg Config, log *slog.Logger) (Part, error) {
	w, err := analytics.New(analytics.Config{
		Brokers: cfg.KafkaBrokers, Namespace: cfg.Namespace(), MongoURI: cfg.MongoURI, Logger: log.With("part", "analyze"),
	})
	if err != nil {
		return Part{}, &ConfigError{Problems: []string{"OUTFLOW_MONGO_URI: " + err.Error()}}
	}
	return workerPart("analyze", w.Run, w.Stats, "event counted", "events counted"), nil
}

// ConfirmPart decides placed orders.
func ConfirmPart(cfg Config, log *slog.Logger) (Part, error) {
	pool, err := store.Open(context.Background(), cfg.PostgresURL, cfg.PostgresMaxConns)
	if err != nil {
		return Part{}, err
	}
	log = log.With("part", "confirm")
	c := consumer.New(consumer.Config{
		Brokers: cfg.KafkaBrokers, Group: cfg.Namespace().Group("confirmer"),
		Topics:  []string{cfg.Namespace().Topic(domain.AggregateOrder)},
		Handler: confirmer.New(store.New(pool, store.Config{VelocityWindow: cfg.VelocityWindow}), log).Handle, Logger: log,
	})
	return workerPart("confirm", thenClose(c.Run, pool.Close), c.Stats, "order event seen", "order events seen"), nil
}

// NotifyPart sends the mail that events ask for.
func NotifyPart(cfg Config, log *slog.Logger) (Part, error) {
	pool, err := store.Open(context.Background(), cfg.PostgresURL, cfg.PostgresMaxConns)
	if err != nil {
		return Part{}, err
	}
	log = log.With("part", "notify")
	mailer, err := newMailer(cfg)
	if err != nil {
		pool.Close()
		return Part{}, err
	}
	n := newNotifier(pool, mailer, cfg, log)
	c := consumer.New(consumer.Config{
		Brokers: cfg.KafkaBrokers, Group: cfg.Namespace().Group("notifier"),
		Topics:  []string{cfg.Namespace().Topic(domain.AggregateNotification)},
		Handler: n.Handler(), Logger: log,
		// A mail server that wants a mail later doesn't want it in a moment.
		MinRetry: 500 * time.Millisecond, MaxRetry: 30 * time.Second,
	})
	run := thenClose(c.Run, func() { mailer.Close(); pool.Close() })
	return workerPart("notify", run, c.Stats, "mail handled", "mails handled"), nil
}

func newMailer(cfg Config) (*notifier.Mailer, error) {
	mailer, err := notifier.NewMailer(notifier.MailerConfig{
		Addr: cfg.SMTPAddr, From: cfg.MailFrom, TLS: cfg.SMTPTLS,
		Username: cfg.SMTPUsername, Password: cfg.SMTPPassword, Timeout: cfg.SMTPTimeout,
	})
	if err != nil {
		return nil, &ConfigError{Problems: []string{err.Error()}}
	}
	return mailer, nil
}

func newNotifier(pool *pgxpool.Pool, mailer *notifier.Mailer, cfg Config, log *slog.Logger) *notifier.Notifier {
	n, per, _ := ParseLimit(cfg.MailRate) // LoadConfig has checked it
	return notifier.New(pool, mailer, notifier.Config{
		// Longer than sending may take, or two could send the same mail.
		Lease: cfg.SMTPTimeout + 15*time.Second, Limit: notifier.Limit{Mails: n, Per: per}, Logger: log,
	})
}

func workerPart(name string, run func(context.Context) error, stats func() consumer.Stats, one, many string) Part {
	return Part{
		Name: name, Run: run,
		Ready:   func() bool { return stats().Joined },
		Current: func() bool { st := stats(); return st.Joined && st.Lag == 0 },
		Done:    func() string { return count(stats().Handled, one, many) },
		Figures: func() []Figure { return workerFigures(stats()) },
	}
}

// thenClose closes what a worker uses when it has stopped.
func thenClose(run func(context.Context) error, closeAll func()) func(context.Context) error {
	return func(ctx context.Context) error {
		defer closeAll()
		return run(ctx)
	}
}

func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}
