/** Where the services are, who calls them, and calls of generated methods over @grpc/grpc-js. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type {
  DescMessage,
  DescMethod,
  DescMethodBiDiStreaming,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";

const CONNECT_MILLIS = 5_000;
/** Longest time for the answer to a call with one answer. */
const CALL_MILLIS = 30_000;

const CHANNEL_OPTIONS: grpc.ChannelOptions = {
  // This program decides what is sent again. Two owners of retries would multiply the attempts.
  "grpc.enable_retries": 0,
  // A new client is a new connection, without the pauses that an earlier one has earned.
  "grpc.use_local_subchannel_pool": 1,
  // Notices a host that has vanished while a call is silent.
  "grpc.keepalive_time_ms": 20_000,
};

/** The options that all programs have. */
export const OPTIONS = {
  server: { type: "string", default: "http://127.0.0.1:50051" },
  results: { type: "string" },
  poll: { type: "string" },
} as const;

/** One address. VOTESTREAM_TOKEN is sent with every call, if it is set. */
export class Service {
  readonly metadata = new grpc.Metadata();
  private readonly target: string;
  private readonly isSecure: boolean;

  constructor(readonly url: string) {
    const { protocol, hostname, port } = new URL(url);
    if (protocol !== "http:" && protocol !== "https:") throw new Error(`${url} is not a URL such as ${OPTIONS.server.default}`);
    this.isSecure = protocol === "https:";
    this.target = `${hostname}:${port || (this.isSecure ? 443 : 80)}`;
    const token = process.env["VOTESTREAM_TOKEN"]?.trim();
    if (!token) return;
    if (!this.isSecure && !/^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname)) {
      throw new Error(`the token would be sent to ${url} unencrypted: use https://`);
    }
    this.metadata.set("authorization", `Bearer ${token}`);
  }

  client(): grpc.Client {
    const credentials = this.isSecure ? grpc.credentials.createSsl() : grpc.credentials.createInsecure();
    return new grpc.Client(this.target, credentials, CHANNEL_OPTIONS);
  }
}

/** Whether a connection comes about at the first attempt: the pauses between attempts are the caller's. */
export async function isConnected(client: grpc.Client): Promise<boolean> {
  const channel = client.getChannel();
  const deadline = Date.now() + CONNECT_MILLIS;
  for (;;) {
    const state = channel.getConnectivityState(true);
    if (state === grpc.connectivityState.READY) return true;
    if (state === grpc.connectivityState.TRANSIENT_FAILURE) return false;
    const late = await new Promise((changed) => channel.watchConnectivityState(state, deadline, changed));
    if (late) return false;
  }
}

export function unary<I extends DescMessage, O extends DescMessage>(
  client: grpc.Client,
  method: DescMethodUnary<I, O>,
  request: MessageInitShape<I>,
  metadata: grpc.Metadata,
): Promise<MessageShape<O>> {
  const { path, serialize, deserialize } = wire(method);
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + CALL_MILLIS };
    client.makeUnaryRequest(path, serialize, deserialize, request, metadata, options, (error, response) => {
      if (response) resolve(response);
      else reject(error);
    });
  });
}

/** No deadline: a poll may be open for days. */
export function serverStream<I extends DescMessage, O extends DescMessage>(
  client: grpc.Client,
  method: DescMethodServerStreaming<I, O>,
  request: MessageInitShape<I>,
  metadata: grpc.Metadata,
): AsyncIterable<MessageShape<O>> {
  const { path, serialize, deserialize } = wire(method);
  return client.makeServerStreamRequest(path, serialize, deserialize, request, metadata);
}

export function bidiStream<I extends DescMessage, O extends DescMessage>(
  client: grpc.Client,
  method: DescMethodBiDiStreaming<I, O>,
  metadata: grpc.Metadata,
): grpc.ClientDuplexStream<MessageInitShape<I>, MessageShape<O>> {
  const { path, serialize, deserialize } = wire(method);
  return client.makeBidiStreamRequest(path, serialize, deserialize, metadata);
}

/** What @grpc/grpc-js needs of a generated method. */
function wire<I extends DescMessage, O extends DescMessage>(method: DescMethod & { input: I; output: O }) {
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    serialize: (message: MessageInitShape<I>) => Buffer.from(toBinary(method.input, create(method.input, message))),
    deserialize: (bytes: Buffer) => fromBinary(method.output, bytes),
  };
}
