// The reference service on grpc-go, with its defaults: the body that every server of the benchmark runs.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"sync"

	"google.golang.org/grpc"

	"onelane.test/bench/echo"
)

type server struct {
	echo.UnimplementedEchoServer

	// Handlers run on many threads.
	mutex sync.Mutex
	seen  map[string]uint32
}

func (s *server) reply(request *echo.EchoRequest) *echo.EchoReply {
	s.mutex.Lock()
	s.seen[request.Key]++
	seen := s.seen[request.Key]
	s.mutex.Unlock()
	return &echo.EchoReply{Text: request.Text, Shard: "go", Seen: seen}
}

func (s *server) Unary(_ context.Context, request *echo.EchoRequest) (*echo.EchoReply, error) {
	return s.reply(request), nil
}

func (s *server) Download(request *echo.EchoRequest, stream grpc.ServerStreamingServer[echo.EchoReply]) error {
	for range request.Times {
		if err := stream.Send(s.reply(request)); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	grpcServer := grpc.NewServer()
	echo.RegisterEchoServer(grpcServer, &server{seen: map[string]uint32{}})
	log.Fatal(grpcServer.Serve(listener))
}
