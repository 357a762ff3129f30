package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// engineTime is how long an engine may take to start.
const engineTime = 20 * time.Second

// Engines are an etcd and a NATS in this process, in the place of real ones: each can be stopped and started
// again, with its data and at its address. Not safe for concurrent use.
type Engines struct {
	dir      string
	etcd     *embed.Etcd
	etcdAddr string
	nats     *server.Server
	natsPort int
}

// StartEngines starts both, at addresses of the system's choice.
func StartEngines() (*Engines, error) {
	dir, err := os.MkdirTemp("", "chat")
	if err != nil {
		return nil, err
	}
	e := &Engines{dir: dir, etcdAddr: "127.0.0.1:0", natsPort: server.RANDOM_PORT}
	if err = errors.Join(e.StartEtcd(), e.StartNATS()); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// Where returns where they are.
func (e *Engines) Where(service string) Where {
	return Where{"http://" + e.etcdAddr, fmt.Sprintf("nats://127.0.0.1:%d", e.natsPort), service}
}

// StartEtcd starts etcd.
func (e *Engines) StartEtcd() error {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(e.dir, "etcd")
	clients := []url.URL{{Scheme: "http", Host: e.etcdAddr}}
	members := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}} // there are no others
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = clients, clients
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = members, members
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 50, 500
	cfg.UnsafeNoFsync = true // the data are thrown away in the end
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	started, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	select {
	case <-started.Server.ReadyNotify():
	case <-time.After(engineTime):
		started.Close()
		return fmt.Errorf("etcd is not ready after %v", engineTime)
	}
	e.etcd, e.etcdAddr = started, started.Clients[0].Addr().String()
	return nil
}

// StopEtcd stops etcd.
func (e *Engines) StopEtcd() {
	if e.etcd != nil {
		e.etcd.Server.HardStop() // without waiting for the requests of those that watch
		e.etcd.Close()
		e.etcd = nil
	}
}

// StartNATS starts NATS with JetStream.
func (e *Engines) StartNATS() error {
	started, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: e.natsPort, NoLog: true,
		NoSigs: true, JetStream: true, StoreDir: filepath.Join(e.dir, "nats"), DisableJetStreamBanner: true})
	if err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	started.Start()
	if !started.ReadyForConnections(engineTime) {
		started.Shutdown()
		return fmt.Errorf("nats is not ready after %v", engineTime)
	}
	e.nats, e.natsPort = started, started.Addr().(*net.TCPAddr).Port
	return nil
}

// StopNATS stops NATS.
func (e *Engines) StopNATS() {
	if e.nats != nil {
		e.nats.Shutdown()
		e.nats.WaitForShutdown()
		e.nats = nil
	}
}

// Close stops both, and removes their data.
func (e *Engines) Close() {
	e.StopEtcd()
	e.StopNATS()
	_ = os.RemoveAll(e.dir)
}

// split returns the addresses that stand in the text with commas between.
func split(text string) []string {
	list := strings.Split(text, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
