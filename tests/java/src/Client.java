import com.google.gson.JsonObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * The stock grpc-java client, without anything of ours: `Client ADDRESS KEY ASIDE SHARD ...`, where `SHARD` owns `KEY`
 * and `ASIDE`. Runs every case with all keys at once over one connection, and prints a line of JSON for each: its error
 * or null. Then a line "hold" on stdin makes it begin streams that do not end.
 */
final class Client {
  private static final int BOUND_S = 100;

  public static void main(String[] arguments) throws Exception {
    String address = arguments[0];
    List<Cases> places = new ArrayList<>();
    var channel = Cases.connect(address);
    for (int at = 1; at < arguments.length; at += 3) {
      places.add(new Cases(address, channel, arguments[at], arguments[at + 1], arguments[at + 2]));
    }
    ExecutorService runner = Executors.newCachedThreadPool();
    for (String name : Cases.NAMES) {
      List<Future<Void>> runs = new ArrayList<>();
      for (Cases cases : places) {
        runs.add(runner.submit(() -> cases.run(name)));
      }
      for (int index = 0; index < runs.size(); index++) {
        JsonObject line = line(name);
        line.addProperty("key", places.get(index).key);
        line.addProperty("error", errorOf(runs.get(index)));
        System.out.println(line);
      }
    }
    System.out.println(line("done"));
    var orders = new BufferedReader(new InputStreamReader(System.in));
    for (String order = orders.readLine(); order != null; order = orders.readLine()) {
      for (Cases cases : places) {
        cases.hold();
      }
      System.out.println(line(order));
    }
    // Idle threads of gRPC's pools would keep the process.
    System.exit(0);
  }

  private static String errorOf(Future<Void> run) throws InterruptedException {
    try {
      run.get(BOUND_S, TimeUnit.SECONDS);
      return null;
    } catch (ExecutionException error) {
      return error.getCause().toString();
    } catch (TimeoutException error) {
      run.cancel(true);
      return "no end in " + BOUND_S + " s";
    }
  }

  private static JsonObject line(String name) {
    JsonObject line = new JsonObject();
    line.addProperty("case", name);
    return line;
  }

  private Client() {}
}
