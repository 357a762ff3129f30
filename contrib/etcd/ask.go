package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
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
			took := time.Since(begun).Round(time.Millisecond)
			return zero, fmt.Errorf("etcd: %s: no answer within %v: %w%s (endpoints %v)",
				doing, took, ctx.Err(), unconnected(client), client.Endpoints())
		}
	}
}

// unconnected returns why the client has no connection, as the end of an error's text; it is empty if there
// is one, one is being made, or the client needs none. The client's own errors do not say it: a request waits
// for a connection, and has timed out then. One that does not wait for it is told.
func unconnected(client *clientv3.Client) string {
	conn := client.ActiveConnection()
	if conn == nil || conn.GetState() != connectivity.TransientFailure {
		return ""
	}
	ctx, cancel := context.WithTimeout(client.Ctx(), 100*time.Millisecond)
	defer cancel()
	err := conn.Invoke(ctx, grpc_health_v1.Health_Check_FullMethodName, &grpc_health_v1.HealthCheckRequest{},
		&grpc_health_v1.HealthCheckResponse{})
	if status.Code(err) != codes.Unavailable {
		return ""
	}
	return ": " + status.Convert(err).Message()
}
