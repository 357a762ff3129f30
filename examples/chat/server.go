package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"

	lib "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	clientv3 "go.etcd.io/etcd/client/v3"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/etcd"
	"github.com/henrylee2cn/teleport/contrib/nats"
	"github.com/henrylee2cn/teleport/contrib/prometheus"
	"github.com/henrylee2cn/teleport/plugin/auth"
)

// Where says where the engines are, and what the service is called there.
type Where struct {
	Etcd    string // endpoints, separated by commas
	Nats    string // URLs, separated by commas
	Service string
}

// Server is one of the chat's servers: a peer that is listed in etcd, whose sessions others reach over NATS,
// and that is counted for Prometheus.
type Server struct {
	Name       string // its address
	MetricsURL string

	rooms   rooms
	peer    *tp.Peer
	listed  *etcd.Registration
	hub     *nats.Hub
	etcd    *clientv3.Client
	web     *http.Server
	serving sync.WaitGroup
	err     error // of serving; read when that is over
}

// StartServer starts a server at the address, with its metrics at another one. It needs neither etcd nor NATS
// to be there: it is listed, and hears of the others, when they are.
func StartServer(where Where, addr, metricsAddr string) (_ *Server, err error) {
	s := &Server{}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s.Name = ln.Addr().String()
	if s.etcd, err = clientv3.New(etcd.ClientConfig(split(where.Etcd)...)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	// A session belongs to the person whose name it has shown.
	people := auth.New(
		auth.AcceptTokens(func(_ context.Context, token string) (*auth.Principal, error) {
			if err := checkName("name", token); err != nil {
				return nil, tp.NewXerror(tp.StatusUnauthorized, err.Error())
			}
			return &auth.Principal{Name: token}, nil // a real chat asks for more than a name
		}),
		auth.AcceptAnonymous(), // back ends, which may not speak
		auth.Rule("/room/*"), auth.Rule("/person/*"))
	auto := nats.Automatic(func(sess *tp.Session) string {
		if p := auth.Of(sess); p != nil {
			return p.Name
		}
		return ""
	})
	metrics := prometheus.New()
	s.listed = etcd.Register(s.etcd, where.Service)
	s.peer = tp.NewPeer(&tp.PeerConfig{}, people, auto, metrics, s.listed)
	s.hub, err = nats.New(s.peer, auto, nats.URL(where.Nats), nats.Service(where.Service), nats.Name(s.Name))
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s.rooms.hub = s.hub
	s.rooms.register(s.peer)
	Stats.Handle(s.peer.PullRouter, s.state)
	if err = s.serveMetrics(metrics, metricsAddr); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s.serving.Go(func() { s.err = s.peer.Serve(ln) })
	return s, nil
}

// serveMetrics has the metrics at an address of their own.
func (s *Server) serveMetrics(metrics *prometheus.Metrics, addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	registry := lib.NewRegistry()
	registry.MustRegister(metrics)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	s.MetricsURL = "http://" + ln.Addr().String() + "/metrics"
	s.web = &http.Server{Handler: mux}
	s.serving.Go(func() { _ = s.web.Serve(ln) })
	return nil
}

// state answers back ends.
func (s *Server) state(tp.PullCtx, *struct{}) (State, tp.Xerror) {
	return State{s.Name, s.peer.CountSession(), s.rooms.messages.Load()}, nil
}

// Shutdown takes the server out of the list, has people and back ends go elsewhere, and ends when all that
// was asked is answered.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.peer.Shutdown(ctx)
	s.release()
	return errors.Join(err, s.err)
}

// Kill ends the server as the end of its process would: nobody is told, it stays in the list until its lease
// is over, and what it was doing is not answered.
func (s *Server) Kill() {
	_ = s.etcd.Close()
	s.release()
}

// release ends all that the server has begun.
func (s *Server) release() {
	if s.peer != nil {
		_ = s.peer.Close()
	}
	if s.hub != nil {
		s.hub.Close()
	}
	if s.web != nil {
		_ = s.web.Close()
	}
	s.serving.Wait()
	if s.etcd != nil {
		_ = s.etcd.Close()
	}
}
