import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.StatusOr;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;

/** Resolves `onelane:///APP` to the addresses of its shards. */
final class Shards extends NameResolverProvider {
  private static final class Address extends InetSocketAddress {
    private final String text; // "127.0.0.1:50151", as `onelane status` prints it

    Address(String text) {
      super(text.substring(0, text.lastIndexOf(':')), Integer.parseInt(text.substring(text.lastIndexOf(':') + 1)));
      this.text = text;
    }

    @Override
    public String toString() {
      return text;
    }
  }

  private final List<EquivalentAddressGroup> addresses = new ArrayList<>();

  Shards(List<String> addresses) {
    for (String address : addresses) {
      this.addresses.add(new EquivalentAddressGroup(new Address(address)));
    }
  }

  @Override
  public NameResolver newNameResolver(URI target, NameResolver.Args args) {
    return new NameResolver() {
      @Override
      public void start(Listener2 listener) {
        listener.onResult(ResolutionResult.newBuilder().setAddressesOrError(StatusOr.fromValue(addresses)).build());
      }

      @Override
      public String getServiceAuthority() {
        return "onelane";
      }

      @Override
      public void shutdown() {}
    };
  }

  @Override
  public String getDefaultScheme() {
    return "onelane";
  }

  @Override
  protected boolean isAvailable() {
    return true;
  }

  @Override
  protected int priority() {
    return 5;
  }
}
