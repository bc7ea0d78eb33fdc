import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import org.apache.catalina.Context;
import org.apache.catalina.startup.Tomcat;

/** A node that is Tomcat: counts the requests of a session. Arguments: jvmRoute, directory. Prints its port. */
public class Servlet extends HttpServlet {
    private final String route;

    Servlet(String route) {
        this.route = route;
    }

    @Override
    protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
        Object before = request.getSession().getAttribute("count");
        int count = before == null ? 1 : (Integer) before + 1;
        request.getSession().setAttribute("count", count);
        String link = response.encodeURL("/count");
        response.getWriter().print(route + " " + count + " " + link);
    }

    public static void main(String[] arguments) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(arguments[1]);
        tomcat.setPort(0);
        tomcat.getEngine().setJvmRoute(arguments[0]);
        Context context = tomcat.addContext("", arguments[1]);
        Tomcat.addServlet(context, "count", new Servlet(arguments[0]));
        context.addServletMappingDecoded("/count", "count");
        tomcat.start();
        System.out.println(tomcat.getConnector().getLocalPort());
        System.in.read(); // until whoever started it is gone
        System.exit(0);
    }
}
