package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// patience is how long a request waits for etcd in all.
const patience = 4 * time.Second

// again is after what times a request that is not answered is made once more, while the first still waits.
// The client spreads its requests over the endpoints, so that another one gets it: an endpoint that is silent
// costs half a second, and one that is slow is not given up for it.
var again = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

// answer is what came of one attempt.
type answer[T any] struct {
	value T
	err   error
}

// ask makes a request, which must be one that may be made twice, and returns the first answer that is no
// error, when all attempts have ended. The error says what was done, and which etcd was asked.
func ask[T any](
	ctx context.Context, client *clientv3.Client, doing string, request func(context.Context) (T, error),
) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	answers := make(chan answer[T], len(again)+1)
	var zero T
	begun, waiting := time.Now(), 0
	defer func() {
		cancel()
		for ; waiting > 0; waiting-- {
			<-answers
		}
	}()
	more := time.NewTimer(0)
	defer more.Stop()
	for next := 0; ; {
		select {
		case <-more.C:
			waiting++
			go func() {
				value, err := request(ctx)
				answers <- answer[T]{value, err}
			}()
			if next < len(again) {
				more.Reset(time.Until(begun.Add(again[next])))
				next++
			}
		case a := <-answers:
			waiting--
			if a.err == nil {
				return a.value, nil
			}
			if waiting == 0 {
				return zero, fmt.Errorf("etcd: %s: %w (endpoints %v)", doing, a.err, client.Endpoints())
			}
		case <-ctx.Done():
			return zero, fmt.Errorf("etcd: %s: no answer within %v: %w (endpoints %v)", doing,
				time.Since(begun).Round(time.Millisecond), ctx.Err(), client.Endpoints())
		}
	}
}
