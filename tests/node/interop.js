// gRPC's interoperability tests with the stock grpc-js client: one line of JSON for each case, its error or null.
// node interop.js ADDRESS
"use strict";

const assert = require("node:assert/strict");
const path = require("node:path");
const { once } = require("node:events");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const root = path.join(__dirname, "..", "..");
const definition = loader.loadSync("tests/interop/v1/test.proto", {
  includeDirs: [path.join(root, "tests", "protos")],
  keepCase: true,
});
const { TestService, UnimplementedService } = grpc.loadPackageDefinition(definition).grpc.testing;
const { status } = grpc;

const REQUEST = 271828;
const ANSWER = 314159;
const REQUESTS = [27182, 8, 1828, 45904];
const ANSWERS = [31415, 9, 2653, 58979];
const INITIAL = "x-grpc-test-echo-initial";
const TRAILING = "x-grpc-test-echo-trailing-bin";
const WHITESPACE = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";

const payload = (size) => ({ body: Buffer.alloc(size) });
const large = (more = {}) => ({ response_size: ANSWER, payload: payload(REQUEST), ...more });
const duplex = (answer, request) => ({ response_parameters: [{ size: answer }], payload: payload(request) });

// One unary answer, or an upload's: its message, its metadata, and its status, which is an error where it is not OK.
function unary(client, method, request, metadata = new grpc.Metadata(), options = {}) {
  return new Promise((resolve) => {
    const seen = {};
    const call = client[method](request, metadata, options, (error, reply) => Object.assign(seen, { error, reply }));
    call.on("metadata", (initial) => (seen.initial = initial));
    call.on("status", (end) => setImmediate(() => resolve({ ...seen, end })));
  });
}

function upload(client, sizes) {
  return new Promise((resolve, reject) => {
    const call = client.StreamingInputCall((error, reply) => (error ? reject(error) : resolve(reply)));
    for (const size of sizes) call.write({ payload: payload(size) });
    call.end();
  });
}

// Everything that a stream of answers brings: sizes, metadata, status.
function drain(call) {
  return new Promise((resolve) => {
    const seen = { sizes: [] };
    call.on("metadata", (initial) => (seen.initial = initial));
    call.on("data", (reply) => seen.sizes.push(reply.payload.body.length));
    call.on("error", () => {});
    call.on("status", (end) => resolve({ ...seen, end }));
  });
}

function sent() {
  const metadata = new grpc.Metadata();
  metadata.set(INITIAL, "test_initial_metadata_value");
  metadata.set(TRAILING, Buffer.from([0xab, 0xab, 0xab]));
  return metadata;
}

function echoed({ initial, end }) {
  assert.deepEqual(initial.get(INITIAL), ["test_initial_metadata_value"]);
  assert.deepEqual(end.metadata.get(TRAILING), [Buffer.from([0xab, 0xab, 0xab])]);
  assert.equal(end.code, status.OK);
}

const packing = (client) =>
  new TestService(client.getChannel().getTarget().replace(/^dns:/, ""), grpc.credentials.createInsecure(), {
    "grpc.default_compression_algorithm": 2,
  });

const cases = {
  async empty_unary(client) {
    assert.deepEqual((await unary(client, "EmptyCall", {})).reply, {});
  },
  async large_unary(client) {
    const { reply } = await unary(client, "UnaryCall", large());
    assert.deepEqual(reply.payload.body, Buffer.alloc(ANSWER));
  },
  async client_streaming(client) {
    assert.equal((await upload(client, REQUESTS)).aggregated_payload_size, 74922);
  },
  async server_streaming(client) {
    const request = { response_parameters: ANSWERS.map((size) => ({ size })) };
    const { sizes, end } = await drain(client.StreamingOutputCall(request));
    assert.deepEqual(sizes, ANSWERS);
    assert.equal(end.code, status.OK);
  },
  async ping_pong(client) {
    const call = client.FullDuplexCall();
    const end = once(call, "status");
    for (const [n, size] of ANSWERS.entries()) {
      call.write(duplex(size, REQUESTS[n]));
      const [reply] = await once(call, "data");
      assert.equal(reply.payload.body.length, size);
    }
    call.on("data", () => assert.fail("one answer too many"));
    call.end();
    assert.equal((await end)[0].code, status.OK);
  },
  async half_duplex(client) {
    const call = client.HalfDuplexCall();
    for (const [n, size] of ANSWERS.entries()) call.write(duplex(size, REQUESTS[n]));
    call.end();
    assert.deepEqual((await drain(call)).sizes, ANSWERS);
  },
  async empty_stream(client) {
    const call = client.FullDuplexCall();
    call.end();
    const { sizes, end } = await drain(call);
    assert.deepEqual(sizes, []);
    assert.equal(end.code, status.OK);
  },
  async client_compressed_unary(client) {
    const packed = packing(client);
    const { reply } = await unary(packed, "UnaryCall", large());
    packed.close();
    assert.equal(reply.payload.body.length, ANSWER);
  },
  async client_compressed_streaming(client) {
    const packed = packing(client);
    const reply = await upload(packed, [27182, 45904]);
    packed.close();
    assert.equal(reply.aggregated_payload_size, 73086);
  },
  async server_compressed_unary(client) {
    for (const value of [true, false]) {
      const { reply } = await unary(client, "UnaryCall", large({ response_compressed: { value } }));
      assert.deepEqual(reply.payload.body, Buffer.alloc(ANSWER));
    }
  },
  async server_compressed_streaming(client) {
    const response_parameters = [
      { size: 31415, compressed: { value: true } },
      { size: 92653, compressed: { value: false } },
    ];
    const { sizes } = await drain(client.StreamingOutputCall({ response_parameters }));
    assert.deepEqual(sizes, [31415, 92653]);
  },
  async custom_metadata_unary(client) {
    echoed(await unary(client, "UnaryCall", large(), sent()));
  },
  async custom_metadata_full_duplex(client) {
    const call = client.FullDuplexCall(sent());
    call.write(duplex(ANSWER, REQUEST));
    call.end();
    const seen = await drain(call);
    assert.deepEqual(seen.sizes, [ANSWER]);
    echoed(seen);
  },
  async status_code_and_message_unary(client) {
    const { end } = await unary(client, "UnaryCall", { response_status: { code: 2, message: "test status message" } });
    assert.deepEqual([end.code, end.details], [status.UNKNOWN, "test status message"]);
  },
  async status_code_and_message_full_duplex(client) {
    const call = client.FullDuplexCall();
    call.write({ response_status: { code: 2, message: "test status message" } });
    call.end();
    const { end } = await drain(call);
    assert.deepEqual([end.code, end.details], [status.UNKNOWN, "test status message"]);
  },
  async special_status_message(client) {
    const { end } = await unary(client, "UnaryCall", { response_status: { code: 2, message: WHITESPACE } });
    assert.deepEqual([end.code, end.details], [status.UNKNOWN, WHITESPACE]);
  },
  async rich_status(client) {
    const metadata = new grpc.Metadata();
    metadata.set("x-interop-rich", "1");
    const { end } = await unary(client, "UnaryCall", { response_status: { code: 9, message: "not now" } }, metadata);
    assert.deepEqual([end.code, end.details], [status.FAILED_PRECONDITION, "not now"]);
    const [rich] = end.metadata.get("grpc-status-details-bin");
    assert.ok(rich.includes("type.googleapis.com/google.rpc.ErrorInfo"));
    assert.ok(rich.includes("BECAUSE"));
  },
  async unimplemented_method(client) {
    assert.equal((await unary(client, "UnimplementedCall", {})).end.code, status.UNIMPLEMENTED);
  },
  async unknown_method(client) {
    const raw = (bytes) => bytes;
    const end = await new Promise((resolve) => {
      client
        .makeUnaryRequest("/grpc.testing.TestService/NoSuchCall", raw, raw, Buffer.alloc(0), () => {})
        .on("status", resolve);
    });
    assert.equal(end.code, status.UNIMPLEMENTED);
  },
  async unimplemented_service(client) {
    const other = new UnimplementedService("unused", null, { channelOverride: client.getChannel() });
    assert.equal((await unary(other, "UnimplementedCall", {})).end.code, status.UNIMPLEMENTED);
  },
  async cancel_after_begin(client) {
    const error = await new Promise((resolve) => client.StreamingInputCall(resolve).cancel());
    assert.equal(error.code, status.CANCELLED);
  },
  async cancel_after_first_response(client) {
    const call = client.FullDuplexCall();
    const ended = drain(call);
    call.write(duplex(31415, 27182));
    await once(call, "data");
    call.cancel();
    assert.equal((await ended).end.code, status.CANCELLED);
  },
  async timeout_on_sleeping_server(client) {
    const call = client.FullDuplexCall({ deadline: Date.now() + 1 });
    const ended = drain(call);
    call.write({ payload: payload(27182) });
    assert.equal((await ended).end.code, status.DEADLINE_EXCEEDED);
  },
  async concurrent_large_unary(client) {
    const replies = await Promise.all(Array.from({ length: 100 }, () => unary(client, "UnaryCall", large())));
    assert.ok(replies.every(({ reply }) => reply.payload.body.length === ANSWER));
  },
};

async function main(address) {
  const client = new TestService(address, grpc.credentials.createInsecure());
  for (const [name, run] of Object.entries(cases)) {
    let error = null;
    let alarm;
    const late = new Promise((_, reject) => (alarm = setTimeout(() => reject(new Error("no end in 100 s")), 100_000)));
    try {
      await Promise.race([run(client), late]);
    } catch (caught) {
      error = String(caught.stack);
    }
    clearTimeout(alarm);
    console.log(JSON.stringify({ case: name, error }));
  }
  client.close();
}

// grpc-js keeps timers of calls that were cancelled, which would keep the process.
main(process.argv[2]).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
