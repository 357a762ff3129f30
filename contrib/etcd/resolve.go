package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/rarely"
)

const (
	defaultKeepMissed = 15 * time.Second
	defaultRecheck    = 5 * time.Second
	// lag is how long what etcd has may be ahead of what the watch has told.
	lag = 250 * time.Millisecond
	// watchPatience is how long etcd has to begin a watch. The next one is likely to be with another
	// endpoint.
	watchPatience = 2 * time.Second
)

// ResolverOption is an option of [NewResolver].
type ResolverOption func(*resolverOptions)

type resolverOptions struct{ keep, recheck time.Duration }

// KeepMissed says for how long a server stays whose record has gone without the server having taken itself
// off: 15 s without it. Time counts only while etcd can be reached, and the last of such servers stay for as
// long as no other is registered. KeepMissed panics if d is negative; with 0 such servers go at once.
func KeepMissed(d time.Duration) ResolverOption {
	if d < 0 {
		panic(fmt.Sprintf("etcd: KeepMissed(%v): expected 0 or more.", d))
	}
	return func(o *resolverOptions) { o.keep = d }
}

// Recheck says how often a resolver asks etcd whether it has missed anything, because its watch is silent or
// etcd has lost its data: 5 s without it. What is asked for is a number and one key, whatever the number of
// servers. Recheck panics if d is not positive.
func Recheck(d time.Duration) ResolverOption {
	if d <= 0 {
		panic(fmt.Sprintf("etcd: Recheck(%v): expected a positive time.", d))
	}
	return func(o *resolverOptions) { o.recheck = d }
}

// Resolver is a [tp.Resolver] of the servers of a service that are registered in etcd. Make it with
// [NewResolver]. It is safe for concurrent use.
type Resolver struct {
	client  *clientv3.Client
	service string
	prefix  string
	options resolverOptions
	limiter rarely.Limiter[string]
}

// NewResolver returns a Resolver of the service. The client is used while [Resolver.Resolve] runs, and
// belongs to the program. NewResolver panics if the client or an option is nil, and if the name is empty or
// has more than 256 bytes.
func NewResolver(client *clientv3.Client, service string, options ...ResolverOption) *Resolver {
	if client == nil {
		panic("etcd: NewResolver: the client is nil.")
	}
	checkName("etcd: NewResolver", service)
	r := &Resolver{client: client, service: service, prefix: prefixOf(service),
		options: resolverOptions{keep: defaultKeepMissed, recheck: defaultRecheck}}
	option.Apply("etcd: NewResolver", &r.options, options)
	return r
}

// Resolve is of [tp.Resolver]. It returns when ctx ends, or when the client is closed.
//
// What etcd cannot tell now is as it was. A record that is no server's is logged and left out; if it was good
// before the server stays as it was.
func (r *Resolver) Resolve(ctx context.Context, update func(servers []tp.Server)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.client.Ctx(), func() { cancel(errors.New("etcd: the client is closed")) })()
	f := &following{r: r, d: newDirectory(r.options.keep), update: update}
	var (
		next  pause
		since time.Time // of the first error in a row
	)
	for {
		err := f.follow(ctx, func() {
			next.reset()
			if !since.IsZero() {
				infof("etcd: service %q: the list of servers is followed again, after %v", r.service,
					time.Since(since).Round(time.Millisecond))
				since = time.Time{}
			}
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errMissed) {
			infof("etcd: service %q: %v", r.service, err)
		} else if since.IsZero() {
			since = time.Now()
			warnf("etcd: service %q: the list of servers cannot be followed; it stays as it was, with %d "+
				"servers: %v; this is tried again", r.service, len(f.d.members), err)
		}
		hurry(r.client)
		select {
		case <-time.After(next.next()):
		case <-ctx.Done():
		}
	}
}

// errMissed says that the watch has missed something, and the list is to be read anew.
var errMissed = errors.New("the watch has missed something, and the list is read anew")

// following is one run of Resolve.
type following struct {
	r      *Resolver
	d      *directory
	update func([]tp.Server)
	// told is what was last told, if anything was.
	told    []tp.Server
	hasTold bool
	// revision is that up to which the directory is what etcd has.
	revision int64
	// suspect is etcd's revision when it had something else than the directory, 0 for none: perhaps the watch
	// is only late.
	suspect int64
}

// follow reads the list, and follows it until that cannot go on. It calls works when it has begun to.
func (f *following) follow(ctx context.Context, works func()) error {
	if err := f.list(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	// A member that is cut off from the others ends the watch, instead of being silent.
	watch := f.r.client.Watch(clientv3.WithRequireLeader(ctx), f.r.prefix, clientv3.WithPrefix(),
		clientv3.WithRev(f.revision+1), clientv3.WithCreatedNotify())
	var asking sync.WaitGroup // one goroutine at a time
	defer asking.Wait()
	defer cancel()
	rechecks := make(chan *state, 1)
	recheck := time.NewTimer(jitter(f.r.options.recheck))
	defer recheck.Stop()
	begin := time.NewTimer(watchPatience)
	defer begin.Stop()
	expiry := time.NewTimer(0)
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case resp, ok := <-watch:
			if !ok {
				return errors.New("etcd: the watch has ended")
			}
			if err := resp.Err(); err != nil {
				return fmt.Errorf("etcd: watch: %w", err)
			}
			if resp.Created {
				begin.Stop()
				works()
			}
			f.d.touch = time.Now()
			f.events(resp.Events)
			f.revision = max(f.revision, resp.Header.GetRevision())
		case <-recheck.C:
			known := f.revision
			asking.Go(func() { rechecks <- f.r.lookUp(ctx, known) })
		case s := <-rechecks:
			if s.err != nil {
				return s.err
			}
			f.d.touch = time.Now()
			if err := f.compare(s); err != nil {
				return err
			}
			if f.suspect != 0 {
				recheck.Reset(lag)
			} else {
				recheck.Reset(jitter(f.r.options.recheck))
			}
		case <-begin.C:
			return fmt.Errorf("etcd: watch: no answer within %v", watchPatience)
		case <-expiry.C:
		}
		if next := f.d.expire(time.Now()); !next.IsZero() {
			expiry.Reset(time.Until(next))
		}
		f.tell()
	}
}

// list reads all records.
func (f *following) list(ctx context.Context) error {
	resp, err := ask(ctx, f.r.client, "reading the list",
		func(ctx context.Context) (*clientv3.GetResponse, error) {
			return f.r.client.Get(ctx, f.r.prefix, clientv3.WithPrefix())
		})
	if err != nil {
		return err
	}
	f.d.begin()
	for _, kv := range resp.Kvs {
		f.put(kv)
	}
	f.d.finish(f.r.prefix, time.Now())
	f.revision, f.suspect = resp.Header.GetRevision(), 0
	f.tell()
	return nil
}

func (f *following) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	id, err := idOf(f.r.prefix, key)
	if err != nil {
		f.r.bad(key, err)
		f.d.revisions[key] = kv.ModRevision
		return
	}
	rec, err := decode(kv.Value)
	if err != nil {
		f.r.bad(key, err)
	}
	f.d.put(key, id, rec, kv.ModRevision, time.Now())
}

// bad logs that what stands at a key is no server.
func (r *Resolver) bad(key string, err error) {
	if left, ok := r.limiter.Allow("bad"); ok {
		warnf("etcd: service %q: %q is left out: %v%s", r.service, key, err, rarely.More(left))
	}
}

func (f *following) events(events []*clientv3.Event) {
	for _, e := range events {
		if e.Type == clientv3.EventTypePut {
			f.put(e.Kv)
			continue
		}
		key := string(e.Kv.Key)
		id, _ := idOf(f.r.prefix, key)
		f.d.remove(key, id, time.Now())
	}
}

// tell calls update if there is something new.
func (f *following) tell() {
	servers := f.d.servers()
	if f.hasTold && sameServers(servers, f.told) {
		return
	}
	f.told, f.hasTold = servers, true
	f.update(servers)
}

// state is what etcd says it has, in few words.
type state struct {
	revision      int64 // of etcd
	known         int64 // up to which its records were known before it was asked
	count, newest int64 // how many keys the service has, and when the latest was written
	err           error
}

// lookUp asks etcd what it has, when what it had up to the revision is known.
func (r *Resolver) lookUp(ctx context.Context, known int64) *state {
	resp, err := ask(ctx, r.client, "looking for what was missed",
		func(ctx context.Context) (*clientv3.GetResponse, error) {
			return r.client.Get(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(),
				clientv3.WithLimit(1), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
		})
	if err != nil {
		return &state{err: err}
	}
	s := &state{revision: resp.Header.GetRevision(), known: known, count: resp.Count}
	if len(resp.Kvs) > 0 {
		s.newest = resp.Kvs[0].ModRevision
	}
	return s
}

// compare returns errMissed if the watch has not told what etcd has: etcd is back with older data, so that
// its revisions are lower than those that the watch waits for, or the watch is silent.
func (f *following) compare(s *state) error {
	if s.revision < s.known {
		return fmt.Errorf("%w: etcd is at revision %d and was at %d", errMissed, s.revision, s.known)
	}
	same := s.count == int64(len(f.d.revisions)) && s.newest == f.d.newest()
	switch {
	case same || f.revision > s.revision: // the watch was faster than the answer
		f.suspect = 0
	case f.suspect == 0 || f.revision >= f.suspect && f.revision < s.revision:
		// It tells things in their order: it has told what it was suspected of, and may be late again.
		f.suspect = s.revision
	default:
		return fmt.Errorf("%w: etcd has %d records, the latest of revision %d, and the watch has told of "+
			"%d, the latest of revision %d", errMissed, s.count, s.newest, len(f.d.revisions), f.d.newest())
	}
	return nil
}
