import com.google.protobuf.DescriptorProtos.DescriptorProto;
import com.google.protobuf.DescriptorProtos.FieldDescriptorProto;
import com.google.protobuf.DescriptorProtos.FieldDescriptorProto.Type;
import com.google.protobuf.DescriptorProtos.FileDescriptorProto;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.DescriptorValidationException;
import com.google.protobuf.Descriptors.FileDescriptor;
import com.google.protobuf.DynamicMessage;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.protobuf.ProtoUtils;
import java.util.List;

/** `echo.v1.Echo` (tests/protos/tests/echo/v1/echo.proto) with protobuf's messages and marshallers, without protoc. */
final class Echo {
  private static final FileDescriptor FILE = file();
  private static final Descriptor REQUEST = FILE.findMessageTypeByName("EchoRequest");
  private static final Descriptor REPLY = FILE.findMessageTypeByName("EchoReply");

  static final MethodDescriptor<DynamicMessage, DynamicMessage> UNARY = method("Unary", MethodType.UNARY);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> UPLOAD = method("Upload", MethodType.CLIENT_STREAMING);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> DOWNLOAD =
      method("Download", MethodType.SERVER_STREAMING);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> CHAT = method("Chat", MethodType.BIDI_STREAMING);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> PLAIN = method("Plain", MethodType.UNARY);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> PLAIN_UPLOAD =
      method("PlainUpload", MethodType.CLIENT_STREAMING);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> PLAIN_CHAT =
      method("PlainChat", MethodType.BIDI_STREAMING);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> MISBEHAVE = method("Misbehave", MethodType.UNARY);
  static final MethodDescriptor<DynamicMessage, DynamicMessage> UNKNOWN = method("NoSuchCall", MethodType.UNARY);

  static DynamicMessage request(String key, String text, int times, String order) {
    return DynamicMessage.newBuilder(REQUEST)
        .setField(REQUEST.findFieldByName("key"), key)
        .setField(REQUEST.findFieldByName("text"), text)
        .setField(REQUEST.findFieldByName("times"), times)
        .setField(REQUEST.findFieldByName("order"), order)
        .build();
  }

  static String text(DynamicMessage reply) {
    return (String) reply.getField(REPLY.findFieldByName("text"));
  }

  static String shard(DynamicMessage reply) {
    return (String) reply.getField(REPLY.findFieldByName("shard"));
  }

  private static MethodDescriptor<DynamicMessage, DynamicMessage> method(String name, MethodType type) {
    return MethodDescriptor.<DynamicMessage, DynamicMessage>newBuilder()
        .setType(type)
        .setFullMethodName("echo.v1.Echo/" + name)
        .setRequestMarshaller(ProtoUtils.marshaller(DynamicMessage.getDefaultInstance(REQUEST)))
        .setResponseMarshaller(ProtoUtils.marshaller(DynamicMessage.getDefaultInstance(REPLY)))
        .build();
  }

  private static FileDescriptor file() {
    FileDescriptorProto file =
        FileDescriptorProto.newBuilder()
            .setName("echo.proto")
            .setPackage("echo.v1")
            .setSyntax("proto3")
            .addMessageType(message("EchoRequest", List.of("key", "text", "times", "order")))
            .addMessageType(message("EchoReply", List.of("text", "shard", "seen")))
            .build();
    try {
      return FileDescriptor.buildFrom(file, new FileDescriptor[0]);
    } catch (DescriptorValidationException error) {
      throw new IllegalStateException(error);
    }
  }

  private static DescriptorProto message(String name, List<String> fields) {
    DescriptorProto.Builder message = DescriptorProto.newBuilder().setName(name);
    for (String field : fields) {
      boolean isNumber = field.equals("times") || field.equals("seen");
      message.addField(
          FieldDescriptorProto.newBuilder()
              .setName(field)
              .setNumber(message.getFieldCount() + 1)
              .setType(isNumber ? Type.TYPE_UINT32 : Type.TYPE_STRING));
    }
    return message.build();
  }

  private Echo() {}
}
