// The stock client of Connect and gRPC-Web, as a page bundles it: calls Echo, and says what has come of it.
import { fromBinary, createFileRegistry } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

async function failure(call) {
  try {
    await call();
  } catch (error) {
    const failed = ConnectError.from(error);
    return { code: Code[failed.code], details: failed.details.map((detail) => detail.type) };
  }
  return { code: "OK", details: [] };
}

window.callEcho = async ({ baseUrl, protocol, useBinaryFormat, descriptors }) => {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, base64Decode(descriptors)));
  const create = protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
  const transport = create({ baseUrl, useBinaryFormat, useHttpGet: protocol === "connect" });
  const echo = createClient(registry.getService("echo.v1.Echo"), transport);
  const unary = await echo.unary({ key: "k", text: "hi" });
  const who = await echo.who({});
  const texts = [];
  for await (const reply of echo.download({ key: "k", text: "x", times: 3 })) texts.push(reply.text);
  return {
    text: unary.text,
    shard: who.shard,
    texts,
    rich: await failure(() => echo.misbehave({ key: "k", order: "rich" })),
    late: await failure(() => echo.misbehave({ key: "k", order: "sleep 30" }, { timeoutMs: 100 })),
  };
};
