import com.google.protobuf.Internal;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.util.List;

/**
 * Loads what the clients load, for the archive of classes that build.sh makes: calls a server of its own that has no
 * methods, and one by xDS, whose server is not there; and has the messages of xDS describe themselves.
 */
final class Loaded {
  private static final String XDS = "io.grpc.xds.shaded.io.envoyproxy.envoy.";
  private static final List<String> MESSAGES =
      List.of(
          "service.discovery.v3.DiscoveryRequest",
          "service.discovery.v3.DiscoveryResponse",
          "config.listener.v3.Listener",
          "config.route.v3.RouteConfiguration",
          "config.cluster.v3.Cluster",
          "config.endpoint.v3.ClusterLoadAssignment",
          "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
          "extensions.filters.http.router.v3.Router",
          "extensions.load_balancing_policies.ring_hash.v3.RingHash");

  public static void main(String[] arguments) throws Exception {
    for (String name : MESSAGES) {
      Message message = Internal.getDefaultInstance(Class.forName(XDS + name).asSubclass(Message.class));
      message.getDescriptorForType();
      message.newBuilderForType().mergeFrom(message.toByteArray()).build();
    }
    Server server = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create()).build().start();
    call("127.0.0.1:" + server.getPort());
    call("xds:///none");
    System.exit(0);
  }

  private static void call(String target) {
    Channel channel = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    var method =
        MethodDescriptor.<String, String>newBuilder()
            .setType(MethodType.UNARY)
            .setFullMethodName("none/None")
            .setRequestMarshaller(Owners.TEXT)
            .setResponseMarshaller(Owners.TEXT)
            .build();
    try {
      ClientCalls.blockingUnaryCall(channel, method, CallOptions.DEFAULT, "");
    } catch (StatusRuntimeException refused) {
      // UNIMPLEMENTED and UNAVAILABLE.
    }
  }

  private Loaded() {}
}
