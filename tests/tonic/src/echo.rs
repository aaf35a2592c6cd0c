//! `echo.v1.Echo` (tests/protos/tests/echo/v1/echo.proto) as tonic's generator writes a stub, without `protoc`.

use tonic::client::Grpc;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{IntoRequest, IntoStreamingRequest, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

pub const UNARY: &str = "/echo.v1.Echo/Unary";
pub const UPLOAD: &str = "/echo.v1.Echo/Upload";
pub const DOWNLOAD: &str = "/echo.v1.Echo/Download";
pub const CHAT: &str = "/echo.v1.Echo/Chat";
pub const PLAIN: &str = "/echo.v1.Echo/Plain";
pub const PLAIN_UPLOAD: &str = "/echo.v1.Echo/PlainUpload";
pub const PLAIN_CHAT: &str = "/echo.v1.Echo/PlainChat";
pub const MISBEHAVE: &str = "/echo.v1.Echo/Misbehave";
pub const UNKNOWN: &str = "/echo.v1.Echo/NoSuchCall";

#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoRequest {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub text: String,
    #[prost(uint32, tag = "3")]
    pub times: u32,
    #[prost(string, tag = "4")]
    pub order: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoReply {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(string, tag = "2")]
    pub shard: String,
    #[prost(uint32, tag = "3")]
    pub seen: u32,
}

pub type Answer = Result<Response<EchoReply>, Status>;
pub type Answers = Result<Response<Streaming<EchoReply>>, Status>;

/// A stub on one connection.
#[derive(Clone)]
pub struct Echo(Grpc<Channel>);

impl Echo {
    pub async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    /// A stub on the same connection that compresses its requests, and takes compressed answers.
    pub fn gzip(&self) -> Self {
        Self(self.0.clone().send_compressed(Gzip).accept_compressed(Gzip))
    }

    pub async fn unary(&mut self, path: &'static str, request: impl IntoRequest<EchoRequest>) -> Answer {
        self.ready().await?;
        self.0.unary(request.into_request(), PathAndQuery::from_static(path), ProstCodec::default()).await
    }

    pub async fn upload(
        &mut self,
        path: &'static str,
        requests: impl IntoStreamingRequest<Message = EchoRequest>,
    ) -> Answer {
        self.ready().await?;
        let request = requests.into_streaming_request();
        self.0.client_streaming(request, PathAndQuery::from_static(path), ProstCodec::default()).await
    }

    pub async fn download(&mut self, path: &'static str, request: impl IntoRequest<EchoRequest>) -> Answers {
        self.ready().await?;
        self.0.server_streaming(request.into_request(), PathAndQuery::from_static(path), ProstCodec::default()).await
    }

    pub async fn chat(
        &mut self,
        path: &'static str,
        requests: impl IntoStreamingRequest<Message = EchoRequest>,
    ) -> Answers {
        self.ready().await?;
        let request = requests.into_streaming_request();
        self.0.streaming(request, PathAndQuery::from_static(path), ProstCodec::default()).await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// With the metadata that ask for the trailers `onelane-shard` and `onelane-hop`.
pub fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("onelane-debug", "1".parse().unwrap());
    request
}
