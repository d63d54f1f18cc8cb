package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"outflow/internal/mailsink"
	"outflow/internal/mongofake"
	"outflow/internal/postgres"
)

// servers are what outflow needs around it, all on loopback.
type servers struct {
	postgres *postgres.Server
	kafka    *kfake.Cluster
	mongoURI string
	mongoIs  string // for the banner
	sink     *mailsink.Sink
	inboxURL string

	stops []func() error // in the order of the starts
}

// startServers starts all servers with their data below dir. What was started
// is stopped again when one of them fails.
func startServers(ctx context.Context, dir string, bin postgres.Binaries, ephemeral bool, log *slog.Logger) (_ *servers, err error) {
	s := &servers{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.postgres, err = postgres.Start(ctx, postgres.Config{Dir: filepath.Join(dir, "postgres"), Bin: bin, Remove: ephemeral, Logger: log}); err != nil {
		return nil, err
	}
	s.onStop(s.postgres.Stop)
	if err := s.startKafka(filepath.Join(dir, "kafka")); err != nil {
		return nil, fmt.Errorf("start Kafka (kfake): %w", err)
	}
	if err := s.startMongo(ctx, filepath.Join(dir, "mongodb"), log); err != nil {
		return nil, fmt.Errorf("start MongoDB: %w", err)
	}
	if s.sink, err = mailsink.Start(context.WithoutCancel(ctx), mailsink.Config{Dir: filepath.Join(dir, "mail"), Logger: log}); err != nil {
		return nil, fmt.Errorf("start the mail sink: %w", err)
	}
	s.onStop(func() error { s.sink.Close(); return nil })
	if err := s.serveInbox(log); err != nil {
		return nil, fmt.Errorf("serve the inbox: %w", err)
	}
	return s, nil
}

func (s *servers) onStop(f func() error) { s.stops = append(s.stops, f) }

// stop stops what was started, last things first.
func (s *servers) stop() error {
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	s.stops = nil
	return errors.Join(errs...)
}

// startMongo runs the machine's own mongod, which keeps its data, else an
// in-process server, which starts empty: the replicator fills it again from
// the events.
func (s *servers) startMongo(ctx context.Context, dir string, log *slog.Logger) error {
	if program, err := findMongod(); err == nil {
		uri, stop, err := startMongod(ctx, program, dir)
		if err != nil {
			return err
		}
		s.onStop(stop)
		s.mongoURI, s.mongoIs = uri, program
		return nil
	}
	fake, err := mongofake.Start(ctx, mongofake.Config{Logger: log})
	if err != nil {
		return err
	}
	s.onStop(fake.Close)
	s.mongoURI, s.mongoIs = "mongodb://"+fake.Addr().String()+"/outflow?directConnection=true", "in memory; rebuilt from the events at every start"
	return nil
}

// serveInbox shows the mail on the port that Mailpit's users know, or on any
// other when that one is taken.
func (s *servers) serveInbox(log *slog.Logger) error {
	ln, err := net.Listen("tcp", "127.0.0.1:8025")
	if err != nil {
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/inbox", s.sink.Handler())
	mux.Handle("/inbox/", s.sink.Handler())
	mux.Handle("/{$}", http.RedirectHandler("/inbox", http.StatusFound))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	s.onStop(func() error {
		err := srv.Close()
		if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	})
	s.inboxURL = "http://" + ln.Addr().String() + "/inbox"
	return nil
}

func (s *servers) variables(apiURL, listen string) []variable {
	return []variable{
		{"OUTFLOW_API_URL", apiURL},
		{"OUTFLOW_LISTEN", listen},
		{"OUTFLOW_POSTGRES_URL", s.postgres.URL()},
		{"OUTFLOW_KAFKA_BROKERS", s.kafka.ListenAddrs()[0]},
		{"OUTFLOW_MONGO_URI", s.mongoURI},
		{"OUTFLOW_SMTP_ADDR", s.sink.Addr()},
		{"OUTFLOW_SMTP_TLS", "none"},
		{"OUTFLOW_INBOX_URL", s.inboxURL},
	}
}

// environ is variables as LoadConfig reads them, on top of what the user set
// for things that the stack does not decide.
func environ(vars []variable) []string {
	env := os.Environ()
	for _, v := range vars {
		env = append(env, v.Name+"="+v.Value)
	}
	return env
}
