package main

import "time"

// server does so many calls at a time as it has workers, and lets the others wait in their order.
type server struct {
	sim     *simulation
	faulty  bool
	running int
	queue   []*attempt
}

func newServer(s *simulation, i int) *server {
	srv := &server{sim: s, faulty: i < s.trouble.servers}
	if srv.faulty && s.stalls > 0 {
		s.after(s.period/2+time.Duration(i)*s.period/time.Duration(s.trouble.servers), srv.stall)
	}
	return srv
}

// stall keeps the server from starting calls for a while, again and again until the simulation's end.
func (srv *server) stall() {
	s := srv.sim
	if s.ended() {
		return
	}
	srv.running += s.workers
	s.after(s.stalls, func() {
		srv.running -= s.workers
		srv.next()
	})
	s.after(s.period, srv.stall)
}

// take receives a call.
func (srv *server) take(a *attempt) {
	s := srv.sim
	if srv.faulty && s.fails && s.now >= s.warmUp/2 {
		s.after(s.network, func() { a.answer(true, 0, 0) })
		return
	}
	a.queued = s.now
	srv.queue = append(srv.queue, a)
	srv.next()
}

// next starts what can be started.
func (srv *server) next() {
	s := srv.sim
	for srv.running < s.workers && len(srv.queue) > 0 {
		a := srv.queue[0]
		srv.queue = srv.queue[1:]
		if a.cancelled {
			continue
		}
		srv.running++
		waited := s.now - a.queued
		a.work = s.exponential(s.service)
		if srv.faulty && s.slower > 0 {
			a.work = time.Duration(float64(a.work) * s.slower)
		}
		s.after(a.work, func() {
			srv.running--
			load := srv.running + len(srv.queue)
			s.after(s.network, func() { a.answer(false, waited, load) })
			srv.next()
		})
	}
}
