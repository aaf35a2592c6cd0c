// Stock clients of xDS for the tests.
//
// `client TARGET METHOD` calls METHOD for each key of a line "FIRST COUNT" on its stdin, the keys FIRST to
// FIRST + COUNT - 1, and prints the answers, or the errors with a `!` before them, as one line of JSON.
// `describe NAME…` prints what go-control-plane, generated from Envoy's protos, has for these messages: for each field
// its message, number, name, kind and type.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const callsAtOnce = 100

// raw is a codec of bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "raw" }

func main() {
	switch os.Args[1] {
	case "client":
		call(os.Args[2], os.Args[3])
	case "describe":
		for _, name := range os.Args[2:] {
			describe(name)
		}
	}
}

func call(target, method string) {
	encoding.RegisterCodec(raw{})
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var first, count int
		if _, err := fmt.Sscan(lines.Text(), &first, &count); err != nil {
			log.Fatal(err)
		}
		answers := make([]string, count)
		places := make(chan struct{}, callsAtOnce)
		var calls sync.WaitGroup
		for i := range answers {
			places <- struct{}{}
			calls.Add(1)
			go func() {
				answers[i] = answer(conn, method, fmt.Sprint(first+i))
				<-places
				calls.Done()
			}()
		}
		calls.Wait()
		if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
			log.Fatal(err)
		}
	}
}

func answer(conn *grpc.ClientConn, method, key string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "onelane-key", key)
	request := append([]byte{0x0a, byte(len(key))}, key...)
	var response []byte
	if err := conn.Invoke(ctx, method, &request, &response, grpc.ForceCodec(raw{})); err != nil {
		return fmt.Sprintf("!%s %s", status.Code(err), err)
	}
	return strings.ToValidUTF8(string(response), "?")
}

func describe(name string) {
	found, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		log.Fatal(name, ": ", err)
	}
	fields := found.Descriptor().Fields()
	fmt.Println(name)
	for i := range fields.Len() {
		field := fields.Get(i)
		kind, of := field.Kind().String(), ""
		switch {
		case field.IsMap():
			kind, of = "map", field.MapValue().Kind().String()
		case field.Message() != nil:
			of = string(field.Message().FullName())
		}
		fmt.Println(name, field.Number(), field.Name(), field.Cardinality(), kind, of)
	}
}
