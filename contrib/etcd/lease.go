package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// tenancy is the server's place in etcd: a lease, and the key that it holds. Only the goroutine of
// Registration.run uses it.
type tenancy struct {
	r     *Registration
	key   string
	lease clientv3.LeaseID // 0 for none
	until time.Time        // when the lease runs out
	// value was written at revision; 0 if the key is not known to have it.
	value    string
	revision int64
	had      bool // the key had a record of this Registration once
}

// run keeps the record in etcd until the peer ends, or the client is closed, and takes it off then.
// Registration.begin starts it, and PreShutdown waits for it.
func (r *Registration) run() {
	defer close(r.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // it ends with this goroutine; whatever waits for etcd ends with the peer
		defer cancel()
		select {
		case <-r.stop:
		case <-ctx.Done():
		}
	}()
	t := &tenancy{r: r, key: keyOf(r.service, r.id)}
	var next pause
	var since time.Time // of the first error in a row
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.stop:
			r.left = t.leave()
			return
		case <-r.client.Ctx().Done():
			warnf("etcd: service %q: the client was closed before the peer; %s is not registered any longer",
				r.service, r.id)
			r.note(t, errors.New("etcd: the client is closed"))
			<-r.stop
			return
		case <-timer.C:
		case <-r.wake:
		}
		err := t.look(ctx)
		if ctx.Err() != nil {
			continue
		}
		before := r.note(t, err)
		wait := jitter(min(r.options.ttl/4, 2*time.Second))
		if err == nil {
			if before == errNotYet {
				infof("etcd: service %q: registered as %s", r.service, r.id)
			} else if before != nil {
				infof("etcd: service %q: registered as %s, after %v without success", r.service, r.id,
					time.Since(since).Round(time.Millisecond))
			}
			next.reset()
			timer.Reset(wait)
			continue
		}
		if before == nil || before == errNotYet { // the first error in a row
			since = time.Now()
			warnf("etcd: service %q: %s is not registered, or will not be for longer than %v: %v; this is "+
				"tried again for as long as the peer lives", r.service, r.id, r.options.ttl, err)
		}
		if other := new(otherServerError); !errors.As(err, &other) { // or else etcd has answered
			hurry(r.client)
			wait = next.next()
		}
		timer.Reset(wait)
	}
}

// note makes the state of t known, and returns the error that was known before.
func (r *Registration) note(t *tenancy, err error) (before error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = r.err
	if !r.ended {
		r.err = err
	}
	r.held, r.until = t.revision != 0, t.until
	close(r.news)
	r.news = make(chan struct{})
	return before
}

// look finds out whether the lease and the record are as they should be, and puts right what is not.
func (t *tenancy) look(ctx context.Context) error {
	r := t.r
	addr := r.address(r.peer)
	if addr == "" {
		if t.revision != 0 {
			if err := t.sayLeaving(ctx); err != nil {
				return err
			}
			t.revision, t.value = 0, ""
		}
		return errNotListening
	}
	r.mu.Lock()
	rec := r.recordLocked(addr)
	r.mu.Unlock()
	value, err := rec.encode()
	if err != nil {
		return err
	}
	if err := t.keepLease(ctx); err != nil {
		return err
	}
	if err := t.keepRecord(ctx, value); err != nil {
		return err
	}
	r.mu.Lock()
	r.last = *rec
	r.mu.Unlock()
	return nil
}

// keepLease has etcd keep the lease, or grant one.
func (t *tenancy) keepLease(ctx context.Context) error {
	client := t.r.client
	if t.lease != 0 {
		until, err := ask(ctx, client, "keeping the lease", func(ctx context.Context) (time.Time, error) {
			return keepOnce(ctx, client, t.lease)
		})
		if err != nil {
			return err
		}
		if !until.IsZero() {
			t.until = until
			return nil
		}
		t.lost()
	}
	sent := time.Now()
	// A lease that is granted without this side hearing of it runs out.
	granted, err := ask(ctx, client, "getting a lease",
		func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
			return client.Grant(ctx, int64(t.r.options.ttl/time.Second))
		})
	if err != nil {
		return err
	}
	t.lease, t.until = granted.ID, sent.Add(time.Duration(granted.TTL)*time.Second)
	return nil
}

// lost says that there is no lease any more.
func (t *tenancy) lost() { t.lease, t.revision, t.value = 0, 0, "" }

// keepOnce has etcd keep the lease, and returns until when that is good at least; the zero Time if there is
// no such lease. Unlike the client's KeepAliveOnce it does not try again, which that does without a pause
// while etcd is away, and unlike its KeepAlive it does not stay with an endpoint that is silent. Only the
// client of an etcd in this process, which has no connection, does it by KeepAliveOnce.
func keepOnce(
	ctx context.Context, client *clientv3.Client, id clientv3.LeaseID,
) (until time.Time, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of the stream
	sent := time.Now()
	conn := client.ActiveConnection()
	if conn == nil {
		kept, err := client.KeepAliveOnce(ctx, id)
		if err == nil {
			until = sent.Add(time.Duration(kept.TTL) * time.Second)
		} else if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			err = nil
		}
		return until, err
	}
	stream, err := etcdserverpb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
	if err != nil {
		return until, err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil && err != io.EOF {
		return until, err // behind an io.EOF there is another error, which Recv returns
	}
	kept, err := stream.Recv()
	if err == nil && kept.TTL > 0 {
		until = sent.Add(time.Duration(kept.TTL) * time.Second)
	}
	return until, err
}

// otherServerError says that another server has the key.
type otherServerError struct{ key, addr string }

func (e *otherServerError) Error() string {
	return fmt.Sprintf("etcd: %s is the record of another server now, at %s: expected each to have an Id, "+
		"or an advertised address, of its own", e.key, e.addr)
}

// keepRecord has the key have the value. If that is the record of another server, which has taken the place
// of this one, it stays, and the error is an *otherServerError.
func (t *tenancy) keepRecord(ctx context.Context, value string) error {
	at := t.revision // in which the key is thought to have been written; 0 for never
	write := at == 0 || t.value != value
	for range 3 {
		var then []clientv3.Op
		if write {
			then = []clientv3.Op{clientv3.OpPut(t.key, value, clientv3.WithLease(t.lease))}
		}
		resp, err := ask(ctx, t.r.client, "writing the record",
			func(ctx context.Context) (*clientv3.TxnResponse, error) {
				return t.r.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(t.key), "=", at)).
					Then(then...).Else(clientv3.OpGet(t.key)).Commit()
			})
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			t.lost()
			return err
		case err != nil:
			return err
		case resp.Succeeded:
			if write {
				t.revision, t.value = resp.Header.Revision, value
			}
			t.had = true
			return nil
		}
		// Something else stands there: of this server's, by a request whose answer was lost or with another
		// lease, of one that was killed at this address, or of one that has taken the place.
		t.revision, t.value = 0, ""
		at, write = 0, true
		if found := resp.Responses[0].GetResponseRange().GetKvs(); len(found) > 0 {
			at = found[0].ModRevision
			other, err := decode(found[0].Value)
			if err == nil && t.had && other.Instance != t.r.instance && !other.Leaving {
				return &otherServerError{t.key, other.Addr}
			}
		}
	}
	return fmt.Errorf("etcd: %s was changed by others three times in a row", t.key)
}

// leave takes the server off, because the peer ends.
func (t *tenancy) leave() error {
	if t.lease == 0 { // nothing was written
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := t.sayLeaving(ctx); err != nil {
		return fmt.Errorf("etcd: service %q: %s could not be taken off, and goes when its lease of %v runs "+
			"out: %w", t.r.service, t.r.id, t.r.options.ttl, err)
	}
	return nil
}

// sayLeaving writes that the server leaves, if the key is this server's. The record goes with the lease,
// which nobody keeps from then on, so that whoever reads the list meanwhile sees the word too.
func (t *tenancy) sayLeaving(ctx context.Context) error {
	value, err := (&record{Instance: t.r.instance, Leaving: true}).encode()
	if err != nil {
		return err
	}
	_, err = ask(ctx, t.r.client, "taking the record off",
		func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return t.r.client.Txn(ctx).If(clientv3.Compare(clientv3.LeaseValue(t.key), "=", t.lease)).
				Then(clientv3.OpPut(t.key, value, clientv3.WithLease(t.lease))).Commit()
		})
	return err
}
