package etcd

import (
	"net/url"
	"slices"
	"strings"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// directory is what a client knows of the servers of a service. One goroutine uses it.
//
// A server that has said that it leaves goes at once. One whose record has gone otherwise is missing: it may
// have been killed, or etcd has lost the record, or has not heard from the server for a while; it is kept for
// some time, and for ever if there would be none left.
type directory struct {
	keep    time.Duration
	members map[string]*member // by Id
	// revisions has all keys as etcd has them, also those with bad records, with the revisions in which they
	// were written.
	revisions map[string]int64
	touch     time.Time // when etcd was last heard
}

type member struct {
	server tp.Server
	// since is when the record was found to be gone; the zero Time while it is there.
	since time.Time
}

func newDirectory(keep time.Duration) *directory {
	return &directory{keep: keep, members: make(map[string]*member), revisions: make(map[string]int64)}
}

// begin begins a new list: put is called for each record that there is, and then finish.
func (d *directory) begin() { clear(d.revisions) }

// finish ends a list: what was not in it is missing, from now on. For what was missing before the time does
// not count in which etcd was not heard.
func (d *directory) finish(prefix string, now time.Time) {
	for id, m := range d.members {
		switch {
		case d.revisions[prefix+url.PathEscape(id)] != 0:
		case m.since.IsZero() || m.since.After(d.touch):
			m.since = now
		default:
			m.since = m.since.Add(now.Sub(d.touch))
		}
	}
	d.touch = now
}

// put takes in a record. A nil one is bad: what was known before stays. The first that is there again when
// all were missing gives the others their time: they may be about to come too.
func (d *directory) put(key, id string, rec *record, revision int64, now time.Time) {
	d.revisions[key] = revision
	switch {
	case rec == nil:
		if m := d.members[id]; m != nil {
			m.since = time.Time{}
		}
	case rec.Leaving:
		delete(d.members, id)
	default:
		if !d.anyThere() {
			for _, m := range d.members {
				m.since = now
			}
		}
		d.members[id] = &member{server: rec.server(id)}
	}
}

// anyThere reports whether a server is not missing.
func (d *directory) anyThere() bool {
	for _, m := range d.members {
		if m.since.IsZero() {
			return true
		}
	}
	return false
}

// remove is told that a record is gone.
func (d *directory) remove(key, id string, now time.Time) {
	delete(d.revisions, key)
	if m := d.members[id]; m != nil && m.since.IsZero() {
		m.since = now
	}
}

// expire forgets those that are missing for too long, if others are there. It returns when it is to be called
// again; the zero Time for not before something has changed.
func (d *directory) expire(now time.Time) (next time.Time) {
	if !d.anyThere() {
		return time.Time{}
	}
	for id, m := range d.members {
		if m.since.IsZero() {
			continue
		}
		until := m.since.Add(d.keep)
		switch {
		case !now.Before(until):
			delete(d.members, id)
		case next.IsZero() || until.Before(next):
			next = until
		}
	}
	return next
}

// newest returns the latest revision in which a key was written; 0 if there are none.
func (d *directory) newest() (revision int64) {
	for _, r := range d.revisions {
		revision = max(revision, r)
	}
	return revision
}

// servers returns all servers, by Id.
func (d *directory) servers() []tp.Server {
	list := make([]tp.Server, 0, len(d.members))
	for _, m := range d.members {
		list = append(list, m.server)
	}
	slices.SortFunc(list, func(a, b tp.Server) int { return strings.Compare(a.Id, b.Id) })
	return list
}

// sameServers reports whether two lists say the same.
func sameServers(a, b []tp.Server) bool {
	return slices.EqualFunc(a, b, func(a, b tp.Server) bool {
		return a.Id == b.Id && a.Addr == b.Addr && a.Zone == b.Zone && a.Weight == b.Weight &&
			a.Version == b.Version && slices.Equal(a.Routes, b.Routes)
	})
}
