import io.grpc.EquivalentAddressGroup;
import io.grpc.LoadBalancer;
import io.grpc.LoadBalancer.Helper;
import io.grpc.LoadBalancerProvider;
import io.grpc.NameResolver.ConfigOrError;
import io.grpc.Status;
import io.grpc.util.ForwardingLoadBalancer;
import io.grpc.xds.RingHashLoadBalancerProvider;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * grpc-java's ring_hash for addresses whose text is `ip:port`, as all other clients hash it: Java itself writes
 * `/ip:port`. Once registered it takes the place of the ring_hash that xDS would use.
 */
public final class TextRing extends LoadBalancerProvider {
  private static final class Address extends InetSocketAddress {
    Address(InetSocketAddress address) {
      super(address.getAddress(), address.getPort());
    }

    @Override
    public String toString() {
      return super.toString().substring(1);
    }
  }

  private final LoadBalancerProvider ringHash = new RingHashLoadBalancerProvider();

  @Override
  public LoadBalancer newLoadBalancer(Helper helper) {
    LoadBalancer ring = ringHash.newLoadBalancer(helper);
    return new ForwardingLoadBalancer() {
      @Override
      protected LoadBalancer delegate() {
        return ring;
      }

      @Override
      public Status acceptResolvedAddresses(LoadBalancer.ResolvedAddresses resolved) {
        List<EquivalentAddressGroup> groups = new ArrayList<>();
        for (EquivalentAddressGroup group : resolved.getAddresses()) {
          var address = new Address((InetSocketAddress) group.getAddresses().get(0));
          groups.add(new EquivalentAddressGroup(address, group.getAttributes()));
        }
        return ring.acceptResolvedAddresses(resolved.toBuilder().setAddresses(groups).build());
      }
    };
  }

  @Override
  public ConfigOrError parseLoadBalancingPolicyConfig(Map<String, ?> config) {
    return ringHash.parseLoadBalancingPolicyConfig(config);
  }

  @Override
  public String getPolicyName() {
    return ringHash.getPolicyName();
  }

  @Override
  public int getPriority() {
    return ringHash.getPriority() + 1;
  }

  @Override
  public boolean isAvailable() {
    return true;
  }
}
