package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/twmb/franz-go/pkg/kfake"
)

// startKafka runs kfake on its data in dir.
//
// kfake keeps its log as it goes, but the state of transactions only when it is
// closed: after a kill in the middle of one, some partitions may hold it and
// others not, and readers of committed records may wait for its end for ever.
// So data that was not closed is thrown away. Nothing is lost by that: the
// outbox has every event, and the relay publishes all of them again.
func (s *servers) startKafka(dir string) error {
	closed := dir + ".closed"
	switch _, err := os.Stat(closed); {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := os.Remove(closed); err != nil {
			return err
		}
	}
	var err error
	if s.kafka, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir)); err != nil {
		return err
	}
	s.onStop(func() error {
		s.kafka.Close()
		return os.WriteFile(closed, nil, 0o644)
	})
	return nil
}
