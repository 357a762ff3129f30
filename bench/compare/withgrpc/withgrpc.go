// Package withgrpc is the small service of docs/calls.md, written with grpc-go.
package withgrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/henrylee2cn/teleport/bench/compare/withgrpc/pb"
)

type server struct{ pb.UnimplementedDemoServer }

func (server) Add(_ context.Context, t *pb.Terms) (*pb.Sum, error) {
	return &pb.Sum{Sum: t.A + t.B}, nil
}

func (server) Wait(ctx context.Context, _ *pb.Nothing) (*pb.Nothing, error) {
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

func (server) Join(_ context.Context, age *pb.Age) (*pb.Text, error) {
	if age.Years < 18 {
		st, err := status.New(codes.FailedPrecondition, "too young").WithDetails(&pb.TooYoung{Min: 18})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &pb.Text{Text: "welcome"}, nil
}

func (server) Hello(stream grpc.BidiStreamingServer[pb.Text, pb.Asked]) error {
	if err := stream.Send(&pb.Asked{What: &pb.Asked_Name{Name: &pb.Nothing{}}}); err != nil {
		return err
	}
	who, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.Send(&pb.Asked{What: &pb.Asked_Greeting{Greeting: &pb.Text{Text: "hello " + who.Text}}})
}

// hello answers what the server asks until it has the greeting.
func hello(ctx context.Context, cli pb.DemoClient) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := cli.Hello(ctx)
	if err != nil {
		return "", err
	}
	for {
		asked, err := stream.Recv()
		if err != nil {
			return "", err
		}
		switch what := asked.What.(type) {
		case *pb.Asked_Name:
			if err := stream.Send(&pb.Text{Text: "Ada"}); err != nil {
				return "", err
			}
		case *pb.Asked_Greeting:
			return what.Greeting.Text, nil
		default:
			return "", errors.New("the server asks for something unknown")
		}
	}
}

// Run starts a server and a client and returns what the client saw.
func Run(ctx context.Context) (seen []string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := grpc.NewServer()
	pb.RegisterDemoServer(srv, server{})
	defer srv.Stop()
	go srv.Serve(ln)
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	cli := pb.NewDemoClient(conn)

	sum, err := cli.Add(ctx, &pb.Terms{A: 1, B: 2})
	seen = append(seen, fmt.Sprint(sum.GetSum(), err))

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = cli.Wait(short, &pb.Nothing{})
	seen = append(seen, fmt.Sprint(err != nil))

	_, err = cli.Join(ctx, &pb.Age{Years: 12})
	for _, d := range status.Convert(err).Details() {
		if why, ok := d.(*pb.TooYoung); ok {
			seen = append(seen, fmt.Sprint("too young: ", why.Min))
		}
	}

	greeting, err := hello(ctx, cli)
	if err != nil {
		return nil, err
	}
	return append(seen, greeting), nil
}
