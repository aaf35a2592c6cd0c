import com.google.common.util.concurrent.ListenableFuture;
import com.google.gson.Gson;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.LoadBalancerRegistry;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.xds.RingHashOptions;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * `XdsOwners TARGET METHOD` calls METHOD for each key of a line "FIRST COUNT" on its stdin, the keys FIRST to
 * FIRST + COUNT - 1, and prints the answers, or the errors with a `!` before them, as one line of JSON.
 */
final class XdsOwners {
  private static final int CALLS_AT_ONCE = 100;

  public static void main(String[] arguments) throws Exception {
    RingHashOptions.setRingSizeCap(1 << 20); // its default, 4096, is the ring of 8 shards
    LoadBalancerRegistry.getDefaultRegistry().register(new TextRing());
    Channel channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    var method =
        MethodDescriptor.<String, String>newBuilder()
            .setType(MethodType.UNARY)
            .setFullMethodName(arguments[1].substring(1))
            .setRequestMarshaller(Owners.TEXT)
            .setResponseMarshaller(Owners.TEXT)
            .build();
    var lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      String[] words = line.split(" ");
      int first = Integer.parseInt(words[0]);
      int end = first + Integer.parseInt(words[1]);
      List<String> answers = new ArrayList<>();
      for (int key = first; key < end; key += CALLS_AT_ONCE) {
        answers.addAll(answers(channel, method, key, Math.min(key + CALLS_AT_ONCE, end)));
      }
      System.out.println(new Gson().toJson(answers));
    }
    // Idle threads of gRPC's pools would keep the process.
    System.exit(0);
  }

  private static List<String> answers(Channel channel, MethodDescriptor<String, String> method, int first, int end)
      throws InterruptedException {
    List<ListenableFuture<String>> calls = new ArrayList<>();
    for (int number = first; number < end; number++) {
      String key = Integer.toString(number);
      Metadata metadata = new Metadata();
      metadata.put(Metadata.Key.of("onelane-key", Metadata.ASCII_STRING_MARSHALLER), key);
      var options = CallOptions.DEFAULT.withDeadlineAfter(60, TimeUnit.SECONDS);
      var keyed = ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
      // Field 1 of the request, a string.
      String request = "\n" + (char) key.length() + key;
      calls.add(ClientCalls.futureUnaryCall(keyed.newCall(method, options), request));
    }
    List<String> answers = new ArrayList<>();
    for (ListenableFuture<String> call : calls) {
      try {
        answers.add(call.get());
      } catch (ExecutionException error) {
        answers.add("!" + error.getCause());
      }
    }
    return answers;
  }

  private XdsOwners() {}
}
