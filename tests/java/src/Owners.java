import com.google.common.io.ByteStreams;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.gson.Gson;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.Marshaller;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.NameResolverRegistry;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.xds.RingHashOptions;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * `Owners SERVICE_CONFIG ADDRESSES KEYS CALLS_AT_ONCE` calls `/test/Where` with the keys 0 to KEYS - 1, and prints the
 * answers: which server grpc-java's ring_hash has taken for each.
 */
final class Owners {
  static final Marshaller<String> TEXT =
      new Marshaller<>() {
        @Override
        public InputStream stream(String text) {
          return new ByteArrayInputStream(text.getBytes(StandardCharsets.UTF_8));
        }

        @Override
        public String parse(InputStream bytes) {
          try {
            return new String(ByteStreams.toByteArray(bytes), StandardCharsets.UTF_8);
          } catch (IOException error) {
            throw new UncheckedIOException(error);
          }
        }
      };

  private static final MethodDescriptor<String, String> WHERE =
      MethodDescriptor.<String, String>newBuilder()
          .setType(MethodType.UNARY)
          .setFullMethodName("test/Where")
          .setRequestMarshaller(TEXT)
          .setResponseMarshaller(TEXT)
          .build();

  public static void main(String[] arguments) throws Exception {
    System.setProperty("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "true");
    ManagedChannel channel = channel(arguments[0], List.of(arguments[1].split(",")));
    int keys = Integer.parseInt(arguments[2]);
    int callsAtOnce = Integer.parseInt(arguments[3]);
    for (int first = 0; first < keys; first += callsAtOnce) {
      List<ListenableFuture<String>> calls = new ArrayList<>();
      for (int key = first; key < Math.min(first + callsAtOnce, keys); key++) {
        var call = withKey(channel, Integer.toString(key)).newCall(WHERE, CallOptions.DEFAULT);
        calls.add(ClientCalls.futureUnaryCall(call, ""));
      }
      for (ListenableFuture<String> call : calls) {
        System.out.println(call.get());
      }
    }
    // Idle threads of gRPC's pools would keep the process.
    System.exit(0);
  }

  @SuppressWarnings("unchecked")
  private static ManagedChannel channel(String serviceConfig, List<String> addresses) {
    RingHashOptions.setRingSizeCap(1 << 20); // its default, 4096, is the ring of 8 shards
    NameResolverRegistry.getDefaultRegistry().register(new Shards(addresses));
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget("onelane:///counter")
            .defaultServiceConfig(new Gson().fromJson(serviceConfig, Map.class))
            .usePlaintext()
            .build();
    return channel;
  }

  private static Channel withKey(Channel channel, String key) {
    Metadata metadata = new Metadata();
    metadata.put(Metadata.Key.of("onelane-key", Metadata.ASCII_STRING_MARSHALLER), key);
    return ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  private Owners() {}
}
