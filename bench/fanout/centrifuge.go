package main

import (
	"context"
	"net"
	"net/http"

	"github.com/centrifugal/centrifuge"
)

// channel is the channel to which every member is subscribed when it connects.
const channel = "room"

// openCentrifuge is a node of centrifuge as it is by default, with members by websocket and protobuf.
func openCentrifuge(ln net.Listener, _ role, joined func()) (*opened, error) {
	return openNode(ln, joined, "centrifuge", centrifuge.ConnectReply{})
}

// openCentrifugeDelay has each connection wait for more messages before it is written to, without a limit to
// how many go in one frame, and by a timer, which takes no goroutine of each connection.
func openCentrifugeDelay(ln net.Listener, _ role, joined func()) (*opened, error) {
	return openNode(ln, joined, "centrifuge20", centrifuge.ConnectReply{
		WriteDelay:         batchDelay,
		WriteWithTimer:     true,
		MaxMessagesInFrame: -1,
		QueueInitialCap:    burst,
	})
}

func openNode(ln net.Listener, joined func(), name string,
	reply centrifuge.ConnectReply) (*opened, error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return nil, err
	}
	reply.Credentials = &centrifuge.Credentials{}
	reply.Subscriptions = map[string]centrifuge.SubscribeOptions{channel: {}}
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return reply, nil
	})
	node.OnConnect(func(*centrifuge.Client) { joined() })
	if err := node.Run(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		// Its pings are half a minute apart, and none of what is measured.
		PingPongConfig: centrifuge.PingPongConfig{PingInterval: -1, PongTimeout: -1},
		// A buffer for writing is needed only while something is written.
		UseWriteBufferPool: true,
	}))
	server := &http.Server{Handler: mux}
	go server.Serve(ln)
	publish := func(messages [][]byte) (failed int) {
		for _, m := range messages {
			if _, err := node.Publish(channel, m); err != nil {
				failed++
			}
		}
		return failed
	}
	return &opened{ways: map[string]way{name: publish}, close: func() {
		server.Close()
		node.Shutdown(context.Background())
	}}, nil
}
