// Program example serves calls of its own for a while, and counts them for Prometheus:
//
//	go run ./example -for 1m
//	curl http://127.0.0.1:9464/metrics
package main

import (
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	lib "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/prometheus"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:9464", "where the metrics are")
	during := flag.Duration("for", 10*time.Second, "how long it runs")
	flag.Parse()

	metrics := prometheus.New()
	registry := lib.NewRegistry()
	registry.MustRegister(metrics)
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	web, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(web, nil)

	srv, cli := tp.NewPeer(nil, metrics), tp.NewPeer(nil, metrics)
	tp.HandlePull(srv.PullRouter, "/sum", func(_ tp.PullCtx, n *[]int) (sum int, _ tp.Xerror) {
		time.Sleep(time.Duration(rand.ExpFloat64() * float64(time.Millisecond)))
		for _, i := range *n {
			sum += i
		}
		return sum, nil
	})
	tp.HandlePull(srv.PullRouter, "/busy", func(tp.PullCtx, *int) (int, tp.Xerror) {
		return 0, tp.NewXerror(tp.StatusOverloaded, "busy")
	})
	tp.HandlePush(srv.PushRouter, "/note", func(tp.PushCtx, *string) {})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go srv.Serve(ln)
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s/metrics, for %v\n", web.Addr(), *during)
	for end := time.Now().Add(*during); time.Now().Before(end); time.Sleep(time.Millisecond) {
		_ = sess.Pull("/sum", []int{1, 2, 3}, new(int))
		switch rand.IntN(20) {
		case 0:
			_ = sess.Pull("/busy", 1, nil)
		case 1:
			_ = sess.Pull("/nosuch", 1, nil)
		case 2:
			_ = sess.Push("/note", "x")
		}
	}
	_ = cli.Close()
	_ = srv.Close()
}
