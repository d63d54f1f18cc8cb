package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/tied"
)

func findMongod() (string, error) { return exec.LookPath("mongod") }

// startMongod runs mongod on a free port with its data in dir, and returns
// when it answers.
func startMongod(ctx context.Context, program, dir string) (uri string, stop func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := ln.Addr().(*net.TCPAddr)
	if err := ln.Close(); err != nil {
		return "", nil, err
	}
	logFile := filepath.Join(filepath.Dir(dir), "mongod.log")
	cmd := exec.Command(program, "--dbpath", dir, "--port", strconv.Itoa(addr.Port), "--bind_ip", "127.0.0.1",
		"--logpath", logFile, "--logappend")
	exited, err := tied.Start(cmd)
	if err != nil {
		return "", nil, err
	}
	stop = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-exited:
			return nil
		case <-time.After(30 * time.Second):
			return errors.Join(errors.New("mongod did not stop within 30 s and was killed"), cmd.Process.Kill())
		}
	}
	uri = "mongodb://" + addr.String() + "/outflow?directConnection=true"
	client, err := mongo.Connect(options.Client().ApplyURI(uri).SetServerSelectionTimeout(time.Second))
	if err != nil {
		return "", nil, errors.Join(err, stop())
	}
	defer func() { err = errors.Join(err, client.Disconnect(context.WithoutCancel(ctx))) }()
	for {
		if err := client.Ping(ctx, nil); err == nil {
			return uri, stop, nil
		}
		select {
		case <-exited:
			return "", nil, fmt.Errorf("%s ended: see %s", program, logFile)
		case <-ctx.Done():
			return "", nil, errors.Join(ctx.Err(), stop())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
