import com.google.common.util.concurrent.ListenableFuture;
import com.google.protobuf.DynamicMessage;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/** What every call type does, with a key of one shard. */
final class Cases {
  static final List<String> NAMES =
      List.of(
          "unary",
          "client_stream",
          "server_stream",
          "bidi",
          "half_close_after_the_answers",
          "plain_handlers",
          "empty_stream",
          "metadata",
          "error",
          "rich_error",
          "error_of_an_upload",
          "unknown_method",
          "deadline",
          "deadline_of_a_stream",
          "cancel",
          "cancel_of_a_stream",
          "large",
          "too_large",
          "gzip",
          "many_at_once",
          "one_after_another",
          "first_calls");

  private static final int CALLS = 150;
  private static final int CONNECTIONS = 6;
  private static final int MIDDLE = 2_000;
  private static final int LARGE = 1_900_000;

  /** More than a server takes, by default. */
  private static final int TOO_LARGE = 5_000_000;

  private static final int SOON_MS = 250;

  private final String address;
  private final Channel channel;
  final String key;
  private final String aside;
  private final String shard;
  private final AtomicReference<Metadata> initial = new AtomicReference<>();
  private final AtomicReference<Metadata> trailers = new AtomicReference<>();

  /** The channel with metadata that ask for the trailers `onelane-shard` and `onelane-hop`. */
  private final Channel traced;

  Cases(String address, Channel channel, String key, String aside, String shard) {
    this.address = address;
    this.channel = channel;
    this.key = key;
    this.aside = aside;
    this.shard = shard;
    Metadata debug = new Metadata();
    debug.put(ascii("onelane-debug"), "1");
    this.traced = with(channel, debug);
  }

  static ManagedChannel connect(String address) {
    return ManagedChannelBuilder.forTarget(address).usePlaintext().build();
  }

  Void run(String name) throws Exception {
    switch (name) {
      case "unary" -> unary();
      case "client_stream" -> clientStream();
      case "server_stream" -> serverStream();
      case "bidi" -> bidi();
      case "half_close_after_the_answers" -> halfCloseAfterTheAnswers();
      case "plain_handlers" -> plainHandlers();
      case "empty_stream" -> emptyStream();
      case "metadata" -> metadata();
      case "error" -> error();
      case "rich_error" -> richError();
      case "error_of_an_upload" -> errorOfAnUpload();
      case "unknown_method" -> unknownMethod();
      case "deadline" -> deadline();
      case "deadline_of_a_stream" -> deadlineOfAStream();
      case "cancel" -> cancel();
      case "cancel_of_a_stream" -> cancelOfAStream();
      case "large" -> large();
      case "too_large" -> tooLarge();
      case "gzip" -> gzip();
      case "many_at_once" -> manyAtOnce();
      case "one_after_another" -> oneAfterAnother();
      case "first_calls" -> firstCalls();
      default -> throw new IllegalArgumentException(name);
    }
    return null;
  }

  private void unary() {
    DynamicMessage reply = call(traced, Echo.UNARY, text("ünïcode"));
    same("ünïcode", Echo.text(reply));
    same(shard, Echo.shard(reply));
    sameOwner();
  }

  private void clientStream() throws Exception {
    same("a,b,c", upload(traced, Echo.UPLOAD, CallOptions.DEFAULT, List.of("a", "b", "c")));
    sameOwner();
  }

  private void serverStream() {
    same(List.of("d", "d", "d"), texts(download(traced, CallOptions.DEFAULT, request("d", 3, ""))));
    sameOwner();
  }

  private void bidi() throws Exception {
    pingPong(traced, Echo.CHAT, CallOptions.DEFAULT, List.of("x", "y", "z"));
    sameOwner();
  }

  /** An empty DATA frame with END_STREAM, long after the last message. */
  private void halfCloseAfterTheAnswers() throws Exception {
    var upload = ClientCalls.blockingClientStreamingCall(channel, Echo.UPLOAD, CallOptions.DEFAULT);
    upload.write(text("a"));
    call(channel, Echo.UNARY, text("between"));
    upload.write(text("b"));
    call(channel, Echo.UNARY, text("between"));
    upload.halfClose();
    same("a,b", Echo.text(upload.read()));
  }

  private void plainHandlers() throws Exception {
    same("p", Echo.text(call(traced, Echo.PLAIN, text("p"))));
    sameOwner();
    same("a,b", upload(channel, Echo.PLAIN_UPLOAD, CallOptions.DEFAULT, List.of("a", "b")));
    pingPong(channel, Echo.PLAIN_CHAT, CallOptions.DEFAULT, List.of("x", "y"));
    refused(Code.NOT_FOUND, "plain abort", channel, Echo.PLAIN, order("abort"));
  }

  /** Without a message there is no key. */
  private void emptyStream() throws Exception {
    var upload = ClientCalls.blockingClientStreamingCall(channel, Echo.UPLOAD, CallOptions.DEFAULT);
    upload.halfClose();
    same(Code.INVALID_ARGUMENT, endOf(upload).getCode());
  }

  private void metadata() {
    Metadata sent = new Metadata();
    byte[] bytes = {0, -1, 0};
    sent.put(ascii("x-there"), "back again");
    sent.put(binary("x-there-bin"), bytes);
    call(with(traced, sent), Echo.MISBEHAVE, order("metadata"));
    same("first", initial.get().get(ascii("x-initial")));
    same("back again", trailers.get().get(ascii("x-back")));
    same(Arrays.toString(bytes), Arrays.toString(trailers.get().get(binary("x-back-bin"))));
    sameOwner();
  }

  private void error() {
    refused(Code.NOT_FOUND, "no such thing: ünïcode", traced, Echo.MISBEHAVE, order("abort"));
    same("aborted", trailers.get().get(ascii("x-why")));
    sameOwner();
    refused(Code.INTERNAL, null, channel, Echo.MISBEHAVE, order("raise boom"));
  }

  private void richError() {
    refused(Code.FAILED_PRECONDITION, "rich", traced, Echo.MISBEHAVE, order("rich"));
    byte[] details = trailers.get().get(binary("grpc-status-details-bin"));
    String text = new String(details, StandardCharsets.ISO_8859_1);
    holds(text.contains("type.googleapis.com/google.rpc.ErrorInfo") && text.contains("BECAUSE"), text);
  }

  /** The status comes although the client has not ended its side. */
  private void errorOfAnUpload() throws Exception {
    var upload = ClientCalls.blockingClientStreamingCall(traced, Echo.UPLOAD, CallOptions.DEFAULT);
    upload.write(order("abort"));
    Status status = endOf(upload);
    same(Code.NOT_FOUND, status.getCode());
    same("no such thing: ünïcode", status.getDescription());
    same("aborted", trailers.get().get(ascii("x-why")));
  }

  private void unknownMethod() {
    refused(Code.UNIMPLEMENTED, null, channel, Echo.UNKNOWN, text(""));
  }

  private void deadline() {
    CallOptions soon = CallOptions.DEFAULT.withDeadlineAfter(SOON_MS, TimeUnit.MILLISECONDS);
    try {
      ClientCalls.blockingUnaryCall(channel, Echo.MISBEHAVE, soon, order("sleep 60"));
      throw new AssertionError("the deadline has not ended the call");
    } catch (StatusRuntimeException error) {
      same(Code.DEADLINE_EXCEEDED, error.getStatus().getCode());
    }
    // The turn of the key is free again.
    CallOptions late = CallOptions.DEFAULT.withDeadlineAfter(10, TimeUnit.SECONDS);
    same("in time", Echo.text(ClientCalls.blockingUnaryCall(channel, Echo.UNARY, late, text("in time"))));
  }

  private void deadlineOfAStream() {
    int replies = 0;
    // On a busy machine the deadline may pass before the first answer: then once more.
    while (replies == 0) {
      CallOptions soon = CallOptions.DEFAULT.withDeadlineAfter(SOON_MS, TimeUnit.MILLISECONDS);
      Iterator<DynamicMessage> stream = download(channel, soon, request("d", 1, "forever"));
      try {
        while (stream.hasNext()) {
          same("d", Echo.text(stream.next()));
          replies++;
        }
        throw new AssertionError("the deadline has not ended the stream");
      } catch (StatusRuntimeException error) {
        same(Code.DEADLINE_EXCEEDED, error.getStatus().getCode());
      }
    }
    same(1, replies);
  }

  /** The turn of the key is free again. */
  private void cancel() {
    String waited = "java-" + key;
    DynamicMessage request = order("wait " + waited);
    var call = ClientCalls.futureUnaryCall(channel.newCall(Echo.MISBEHAVE, CallOptions.DEFAULT), request);
    List<String> began = List.of();
    while (!began.contains(waited)) {
      call(traced, Echo.MISBEHAVE, Echo.request(aside, "", 0, "began"));
      began = List.of(trailers.get().get(ascii("x-began")).split(" "));
    }
    call.cancel(true);
    same("next", Echo.text(call(channel, Echo.UNARY, text("next"))));
  }

  private void cancelOfAStream() throws Exception {
    hold().cancel("enough", null);
    var chat = ClientCalls.blockingBidiStreamingCall(channel, Echo.CHAT, CallOptions.DEFAULT);
    chat.write(text("a"));
    same("a", Echo.text(chat.read()));
    chat.cancel("enough", null);
    same(Code.CANCELLED, endOf(chat).getCode());
  }

  private void large() throws Exception {
    String text = "l".repeat(LARGE);
    holds(Echo.text(call(channel, Echo.UNARY, text(text))).equals(text), "another text");
    bodies(channel, CallOptions.DEFAULT, text, 2, "");
  }

  private void tooLarge() {
    refused(Code.RESOURCE_EXHAUSTED, null, channel, Echo.UNARY, text("l".repeat(TOO_LARGE)));
    // The connection is as good as before.
    same("next", Echo.text(call(channel, Echo.UNARY, text("next"))));
  }

  private void gzip() throws Exception {
    String text = "gzip ".repeat(20_000);
    CallOptions packed = CallOptions.DEFAULT.withCompression("gzip");
    DynamicMessage reply = ClientCalls.blockingUnaryCall(channel, Echo.UNARY, packed, text(text));
    holds(Echo.text(reply).equals(text), "another text");
    bodies(traced, packed, text, 3, "gzip");
    texts(download(traced, packed, request(text, 3, "gzip")));
    same("gzip", initial.get().get(ascii("grpc-encoding")));
  }

  /** Texts of some size by an upload, a download and a chat. */
  private void bodies(Channel channel, CallOptions options, String text, int times, String order) throws Exception {
    List<String> texts = Collections.nCopies(times, text);
    holds(upload(channel, Echo.UPLOAD, options, texts).equals(String.join(",", texts)), "another text");
    holds(texts(download(channel, options, request(text, times, order))).equals(texts), "other texts");
    pingPong(channel, Echo.CHAT, options, texts);
  }

  private void manyAtOnce() throws Exception {
    List<ListenableFuture<DynamicMessage>> calls = new ArrayList<>();
    for (int number = 0; number < CALLS; number++) {
      var call = channel.newCall(Echo.UNARY, CallOptions.DEFAULT);
      calls.add(ClientCalls.futureUnaryCall(call, text(numbered(number))));
    }
    for (int number = 0; number < CALLS; number++) {
      DynamicMessage reply = calls.get(number).get();
      same(numbered(number), Echo.text(reply));
      same(shard, Echo.shard(reply));
    }
  }

  private void oneAfterAnother() {
    for (int number = 0; number < CALLS; number++) {
      DynamicMessage reply = call(channel, Echo.UNARY, text(numbered(number)));
      same(numbered(number), Echo.text(reply));
      same(shard, Echo.shard(reply));
    }
  }

  /** The first call of a connection decides where it ends. */
  private void firstCalls() throws Exception {
    for (int number = 0; number < CONNECTIONS; number++) {
      ManagedChannel own = connect(address);
      if (number % 2 == 0) {
        same(shard, Echo.shard(call(own, Echo.UNARY, text("first".repeat(MIDDLE)))));
      } else {
        pingPong(own, Echo.CHAT, CallOptions.DEFAULT, List.of("first", "second"));
      }
      same(shard, Echo.shard(call(own, Echo.UNARY, text("next"))));
      own.shutdownNow();
    }
  }

  /** A stream of which only the first answer comes. */
  BlockingClientCall<DynamicMessage, DynamicMessage> hold() throws Exception {
    DynamicMessage request = request("d", 1, "forever");
    var call = ClientCalls.blockingV2ServerStreamingCall(channel, Echo.DOWNLOAD, CallOptions.DEFAULT, request);
    same("d", Echo.text(call.read()));
    return call;
  }

  // Calls

  private static DynamicMessage call(
      Channel channel, MethodDescriptor<DynamicMessage, DynamicMessage> method, DynamicMessage request) {
    return ClientCalls.blockingUnaryCall(channel, method, CallOptions.DEFAULT, request);
  }

  private void refused(
      Code code,
      String description,
      Channel channel,
      MethodDescriptor<DynamicMessage, DynamicMessage> method,
      DynamicMessage request) {
    try {
      throw new AssertionError("answered: " + call(channel, method, request));
    } catch (StatusRuntimeException error) {
      same(code, error.getStatus().getCode());
      if (description != null) {
        same(description, error.getStatus().getDescription());
      }
    }
  }

  private String upload(
      Channel channel,
      MethodDescriptor<DynamicMessage, DynamicMessage> method,
      CallOptions options,
      List<String> texts)
      throws Exception {
    var call = ClientCalls.blockingClientStreamingCall(channel, method, options);
    for (String text : texts) {
      call.write(text(text));
    }
    call.halfClose();
    DynamicMessage reply = call.read();
    same(shard, Echo.shard(reply));
    same(null, call.read());
    return Echo.text(reply);
  }

  private static Iterator<DynamicMessage> download(Channel channel, CallOptions options, DynamicMessage request) {
    return ClientCalls.blockingServerStreamingCall(channel, Echo.DOWNLOAD, options, request);
  }

  private List<String> texts(Iterator<DynamicMessage> replies) {
    List<String> texts = new ArrayList<>();
    while (replies.hasNext()) {
      DynamicMessage reply = replies.next();
      same(shard, Echo.shard(reply));
      texts.add(Echo.text(reply));
    }
    return texts;
  }

  /** Each request but the first leaves once the answer to the last has come. */
  private void pingPong(
      Channel channel,
      MethodDescriptor<DynamicMessage, DynamicMessage> method,
      CallOptions options,
      List<String> texts)
      throws Exception {
    var call = ClientCalls.blockingBidiStreamingCall(channel, method, options);
    for (String text : texts) {
      call.write(text(text));
      DynamicMessage reply = call.read();
      holds(Echo.text(reply).equals(text), "another text");
      same(shard, Echo.shard(reply));
    }
    call.halfClose();
    same(null, call.read());
  }

  private static Status endOf(BlockingClientCall<DynamicMessage, DynamicMessage> call) throws Exception {
    try {
      throw new AssertionError("no end: " + call.read());
    } catch (StatusException error) {
      return error.getStatus();
    }
  }

  private DynamicMessage text(String text) {
    return request(text, 0, "");
  }

  private DynamicMessage order(String order) {
    return request("", 0, order);
  }

  private DynamicMessage request(String text, int times, String order) {
    return Echo.request(key, text, times, order);
  }

  private static String numbered(int number) {
    return String.format("%0" + MIDDLE + "d", number);
  }

  // Metadata

  private Channel with(Channel channel, Metadata sent) {
    return ClientInterceptors.intercept(
        channel,
        MetadataUtils.newCaptureMetadataInterceptor(initial, trailers),
        MetadataUtils.newAttachHeadersInterceptor(sent));
  }

  private static Metadata.Key<String> ascii(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  private static Metadata.Key<byte[]> binary(String name) {
    return Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER);
  }

  // Assertions

  private void sameOwner() {
    same(shard, trailers.get().get(ascii("onelane-shard")));
  }

  private static void same(Object expected, Object actual) {
    holds(Objects.equals(expected, actual), "expected " + expected + ", received " + actual);
  }

  private static void holds(boolean condition, String otherwise) {
    if (!condition) {
      throw new AssertionError(otherwise);
    }
  }
}
